"""The same text, ids and masks as transformers makes of the same folder: it is what the trained model will be asked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data.encode import Example, encode
from finetune.data.row import Message, Row
from finetune.data.template import CHATML, PLAIN, Template
from finetune.data.tokenizer import TextTokenizer, load

pytestmark = pytest.mark.train

TEMPLATES = Path(__file__).parent / "templates"
CONVERSATIONS: dict[str, list[tuple[str, str]]] = {
    "one": [("user", "What is the key?"), ("assistant", "The key is 12345.")],
    "several": [("user", "a"), ("assistant", "One."), ("user", "b"), ("assistant", " Two\n")],
    "newlines": [("user", "a\n"), ("assistant", "\n\nHello"), ("user", " b "), ("assistant", "\nTwo\n\n")],
    "empty": [("user", ""), ("assistant", "")],
    "blanks": [("user", "  "), ("assistant", "  ")],
    "unicode": [("user", "Grüße?\t"), ("assistant", "日本語 😀 e\u0301 \r\n ok")],
    "code": [("user", "{{ x }} {% if %}"), ("assistant", "<b>&amp;</b> it's 'fine'")],
    "thoughts": [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nYes")],
}


@pytest.fixture(scope="module")
def theirs(base: Path) -> Any:
    """transformers' tokenizer of the base."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def source(name: str) -> str:
    """One of the templates beside this file, or one of ours."""
    own = {"chatml": CHATML, "plain": PLAIN}
    return own.get(name) or (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


@pytest.mark.parametrize("name", ["smollm2", "trimming", "thinking", "instruct", "chatml", "plain"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_texts_and_ids_are_those_of_transformers(name: str, conversation: str, base: Path, theirs: Any) -> None:
    ours = load(base, source(name))
    turns = CONVERSATIONS[conversation]
    messages = [{"role": role, "content": content} for role, content in turns]
    whole = theirs.apply_chat_template(messages, chat_template=source(name), tokenize=False)
    assert ours.template.render([Message(*turn) for turn in turns]) == whole
    wanted = theirs.apply_chat_template(
        messages[:-1], chat_template=source(name), add_generation_prompt=True, return_dict=False
    )
    assert ours.prompt([Message(*turn) for turn in turns[:-1]]) == wanted


@pytest.mark.parametrize("name", ["tools_hermes", "tools_headers"])
def test_tools_are_rendered_as_by_transformers(name: str, base: Path, theirs: Any) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "Tells <it>", "parameters": {}}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "São Paulo", "days": [1, 2.5]}}}
    turns = (
        Message("user", "Warm?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", '"31 °C"', name="weather"),
        Message("assistant", "Yes."),
    )
    ours = load(base, source(name)).template.with_tools([tool]).render(turns)
    messages = [turn.as_json() for turn in turns]
    assert ours == theirs.apply_chat_template(messages, tools=[tool], chat_template=source(name), tokenize=False)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_masks_are_those_of_generation_markers(
    conversation: str, tokenizer: TextTokenizer, untrimmed_base: Path
) -> None:
    """Ours on a tokenizer with trimmed offsets, theirs on the same one without: with trimmed ones theirs lose blanks."""
    from transformers import AutoTokenizer

    turns = CONVERSATIONS[conversation]
    (found,) = encode([Row(1, messages=tuple(Message(*turn) for turn in turns))], tokenizer, "assistant")
    assert isinstance(found, Example)
    marked = AutoTokenizer.from_pretrained(untrimmed_base).apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        chat_template=source("smollm2_generation"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert found.tokens.tolist() == marked["input_ids"]
    assert found.mask.astype(int).tolist() == marked["assistant_masks"]


def test_plain_texts_get_the_ids_of_transformers(tokenizer: TextTokenizer, theirs: Any) -> None:
    texts = [content for turns in CONVERSATIONS.values() for _, content in turns if content]
    for text, found in zip(texts, encode([Row(1, text=text) for text in texts], tokenizer, "all"), strict=True):
        assert isinstance(found, Example)
        assert found.tokens.tolist() == [*theirs(text)["input_ids"], tokenizer.eos_id]
        assert tokenizer.decode(found.tokens) == theirs.decode(found.tokens, skip_special_tokens=True)


def test_the_environment_of_templates_is_that_of_transformers() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    ours, own = Template("")._compiled.environment, _compile_jinja_template("").environment
    assert set(ours.globals) == set(own.globals)
    assert set(ours.filters) == set(own.filters)
    assert (ours.trim_blocks, ours.lstrip_blocks, ours.autoescape) == (
        own.trim_blocks,
        own.lstrip_blocks,
        own.autoescape,
    )
