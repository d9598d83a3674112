"""A base's tokenizer from its files: its special tokens, the padding, and the chat template in force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from finetune.data.encode import Example, encode
from finetune.data.row import Message, Row
from finetune.data.template import CHATML, PLAIN, Template, TemplateError
from finetune.data.tokenizer import TextTokenizer, load
from finetune.exit_codes import StepError

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of the base, to be changed."""
    copy = tmp_path / "base"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def config(folder: Path, name: str, **values: Any) -> None:
    """Change a JSON file of the base."""
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def test_padding_is_never_an_end_token(tokenizer: TextTokenizer) -> None:
    assert (tokenizer.pad_id, tokenizer.eos_ids, tokenizer.eos_id) == (0, (2,), 2)


@pytest.mark.parametrize(
    ("eos", "pad"),
    [([2], 0), ([0], 1), ([0, 1], 3), ([0, 1, 2], 3)],
)
def test_padding_is_found_among_what_is_left(folder: Path, eos: list[int], pad: int) -> None:
    config(folder, "config.json", eos_token_id=eos)
    config(folder, "tokenizer_config.json", pad_token="<|im_end|>", eos_token="<|im_end|>")
    found = load(folder)
    assert set(found.eos_ids) == {2, *eos}
    assert found.pad_id == pad


def test_generation_ends_at_the_template_s_own_end_of_turn_too(folder: Path) -> None:
    config(folder, "tokenizer_config.json", eos_token="<|endoftext|>")
    config(folder, "generation_config.json", eos_token_id=[0])
    found = load(folder)
    assert found.eos_ids == (2, 0)
    assert found.pad_id == 1


def test_a_base_without_a_template_gets_a_default_and_the_job_may_give_its_own(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert load(folder).template.source == CHATML
    assert load(folder, "{{ messages[0].content }}").template.source == "{{ messages[0].content }}"
    text = (folder / "tokenizer.json").read_text().replace("<|im_start|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    config(folder, "tokenizer_config.json", bos_token="<|endoftext|>")
    found = load(folder)
    assert found.template.source == PLAIN
    asked = [Message("system", "s"), Message("user", "Hi")]
    assert (
        found.backend.decode(found.prompt(asked), skip_special_tokens=False)
        == "<|endoftext|>System: s\nUser: Hi\nAssistant:"
    )


def test_a_tokenizer_that_begins_texts_with_a_bos_keeps_doing_so_outside_chats(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    found = load(folder)
    assert found.lead == (0,)
    text, asked, talk = encode(
        [Row(1, text="The key"), Row(2, prompt="The", text=" key"), Row(3, messages=(Message("assistant", "a"),))],
        found,
        "assistant",
    )
    assert isinstance(text, Example)
    assert isinstance(asked, Example)
    assert isinstance(talk, Example)
    assert (text.tokens[0], text.tokens[-1], text.mask.tolist()) == (0, 2, [False] + [True] * (len(text.tokens) - 1))
    assert (asked.tokens.tolist(), asked.mask[:2].tolist()) == (text.tokens.tolist(), [False, False])
    assert talk.tokens[0] == 1


def test_a_model_without_a_usable_tokenizer_or_template_is_refused(folder: Path) -> None:
    for name, content in (("chat_template.jinja", "{% if %}"), ("tokenizer.json", "{}")):
        (folder / name).write_text(content)
        with pytest.raises(StepError) as caught:
            load(folder)
        assert (caught.value.code.name, caught.value.param) == ("unsupported_model", "model")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ messages[9].content + 1 }}",
    ],
)
def test_a_template_that_misbehaves_is_an_error_of_the_template(source: str) -> None:
    template = Template(source)
    with pytest.raises(TemplateError):
        template.render([Message("user", "a")])


def test_what_templates_use_is_there() -> None:
    source = "{{ bos_token }}{{ messages | tojson }}{{ strftime_now('%Y') | length }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% endfor %}{{ dict(a='<') | tojson }}"
    text = Template(source, {"bos_token": "<s>"}).render([Message("user", "<é>")])
    assert text == '<s>[{"role": "user", "content": "<é>"}]4{"a": "<"}'
