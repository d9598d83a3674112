"""Which tokens carry loss: answers and their end-of-turn token, in every kind of chat template, whatever they hold."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.encode import Example, encode
from finetune.data.masks import render, token_mask
from finetune.data.row import Message, Row
from finetune.data.template import CHATML, PLAIN, Template, TemplateError
from finetune.data.tokenizer import TextTokenizer

pytestmark = pytest.mark.unit

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = re.compile(r"<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>")
NAMED = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
text = st.text(letters, max_size=20).filter(lambda content: not SPECIAL.search(content))
padded = st.builds(
    lambda left, core, right: left + core + right,
    st.sampled_from(["", "\n", " ", "\n\n "]),
    text,
    st.sampled_from(["", "\n", " \n"]),
)
conversations = st.builds(
    lambda system, turns: [*system, *(message for pair in turns for message in pair)],
    st.one_of(st.just([]), text.map(lambda content: [Message("system", content)])),
    st.lists(
        st.tuples(
            padded.map(lambda content: Message("user", content)),
            st.builds(Message, st.just("assistant"), padded, st.booleans()),
        ),
        min_size=1,
        max_size=3,
    ),
)


def template(name: str) -> Template:
    """One of the templates beside this file, or one of ours."""
    own = {"chatml": CHATML, "plain": PLAIN}
    source = own.get(name) or (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    return Template(source, NAMED)


def turns(*contents: str, trained: Sequence[bool] = (True, True, True)) -> list[Message]:
    """User and assistant by turns."""
    return [Message(("user", "assistant")[at % 2], content, trained[at // 2]) for at, content in enumerate(contents)]


def trained(
    messages: list[Message], name: str, train_on: Literal["assistant", "all", "last"] = "assistant"
) -> list[str]:
    """The texts that carry loss."""
    found = render(messages, template(name), SPECIAL, train_on)
    return [found.text[begin:end] for begin, end in found.spans]


def encoded(row: Row, tokenizer: TextTokenizer, train_on: Literal["assistant", "all", "last"] = "assistant") -> Example:
    """The example of one row, which must become one."""
    (found,) = encode([row], tokenizer, train_on)
    assert isinstance(found, Example), found
    return found


def pieces(example: Example, tokenizer: TextTokenizer) -> str:
    """The text of the trained tokens, special ones written out."""
    return str(tokenizer.backend.decode(example.tokens[example.mask].tolist(), skip_special_tokens=False))


@given(conversations, st.sampled_from(["chatml", "smollm2", "smollm2_generation"]))
def test_an_answer_and_its_end_are_trained_to_the_letter(messages: list[Message], name: str) -> None:
    wanted = [message.content + "<|im_end|>" for message in messages if message.role == "assistant" and message.trained]
    assert trained(messages, name) == wanted


@given(conversations)
def test_a_template_that_trims_contents_trains_what_it_leaves(messages: list[Message]) -> None:
    answers = [message for message in messages if message.role == "assistant" and message.trained]
    assert [found.rstrip() for found in trained(messages, "trimming")] == [
        answer.content.strip() + "<|im_end|>" for answer in answers
    ]


@given(conversations)
def test_all_trains_everything_but_turns_of_weight_zero(messages: list[Message]) -> None:
    found = render(messages, template("smollm2"), SPECIAL, "all")
    kept = "".join(found.text[begin:end] for begin, end in found.spans)
    silent = [
        message.content + "<|im_end|>" for message in messages if message.role == "assistant" and not message.trained
    ]
    assert len(kept) == len(found.text) - sum(map(len, silent))


@pytest.mark.parametrize(
    ("name", "contents", "wanted"),
    [
        ("plain", ("Hi", "Yes."), [" Yes.<|im_end|>"]),
        ("plain", ("Hi", "\n\nYes", "And", "no"), [" \n\nYes<|im_end|>", " no<|im_end|>"]),
        ("instruct", ("Hi", "a", "x", "Yes "), [" a<|im_end|>", " Yes <|im_end|>"]),
        ("thinking", ("Hi", "<think>\nhm\n</think>\n\nYes"), ["<think>\nhm\n</think>\n\nYes<|im_end|>"]),
        ("thinking", ("Hi", "Yes"), ["<think>\n\n</think>\n\nYes<|im_end|>"]),
        (
            "thinking",
            ("a", "<think>x</think>One", "b", "Two"),
            ["One<|im_end|>", "<think>\n\n</think>\n\nTwo<|im_end|>"],
        ),
        ("trimming", ("Hi", "<|assistant|>"), ["<|assistant|><|im_end|>"]),
    ],
)
def test_an_answer_begins_where_the_model_would_begin_to_write(
    name: str, contents: tuple[str, ...], wanted: list[str]
) -> None:
    assert trained(turns(*contents), name) == wanted


def test_last_trains_the_last_answer_alone() -> None:
    assert trained(turns("a", "One", "b", "Two"), "smollm2", "last") == ["Two<|im_end|>"]
    assert trained(turns("a", "One", "b", "Two", trained=(True, False)), "smollm2", "last") == []


def test_two_answers_in_a_row_are_both_found() -> None:
    messages = [Message("user", "a"), Message("assistant", "One"), Message("assistant", "One")]
    assert trained(messages, "smollm2") == ["One<|im_end|>", "One<|im_end|>"]


def test_a_conversation_the_template_refuses_says_why() -> None:
    with pytest.raises(TemplateError, match="no system turns here"):
        render([Message("system", "s"), *turns("a", "b")], template("instruct"), SPECIAL, "assistant")


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}{{ messages | map(attribute='content') | join | length }}",
        "{% for m in messages | sort(attribute='content', reverse=true) %}{{ m.content }},{% endfor %}{{ messages | tojson | length }}",
    ],
)
def test_a_template_whose_answers_cannot_be_found_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="cannot be found"):
        render(turns("ab", "cd"), Template(source), SPECIAL, "assistant")


@pytest.mark.parametrize(
    ("left_out", "messages", "says"),
    [
        ("m.role == 'system'", [Message("system", "s"), *turns("a", "b")], "render messages of role system;"),
        ("loop.index == 3", turns("a", "b", "c", "d"), "render messages of role user;"),
        ("loop.index == 2", turns("a", "b", "c", "d"), "render messages of role assistant;"),
    ],
)
def test_a_message_that_a_template_leaves_out_is_said(left_out: str, messages: list[Message], says: str) -> None:
    silent = (
        "{% for m in messages %}{% if not ("
        + left_out
        + ") %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    with pytest.raises(TemplateError, match=says):
        render(messages, Template(silent), SPECIAL, "assistant")


THOUGHTLESS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:<think>{% endif %}"
)


def test_thoughts_that_would_not_be_learned_are_said() -> None:
    messages = turns("a", "<think>hm</think>One", "b", "<think>so</think>Two")
    with pytest.raises(TemplateError, match="leaves out the beginning of the last answer"):
        render(messages, Template(THOUGHTLESS), SPECIAL, "assistant")
    untrained = [*messages[:3], Message("assistant", messages[3].content, trained=False)]
    found = render(untrained, Template(THOUGHTLESS), SPECIAL, "assistant")
    assert [found.text[begin:end] for begin, end in found.spans] == ["One<|im_end|>"]


def test_thoughts_of_earlier_answers_may_be_left_out() -> None:
    messages = turns("a", "<think>hm</think>\n One ", "b", "Two")
    found = render(messages, Template(THOUGHTLESS), SPECIAL, "assistant")
    assert [found.text[begin:end] for begin, end in found.spans] == ["\n One <|im_end|>", "Two<|im_end|>"]


def test_an_answer_that_a_template_rewrites_is_what_stands_after_its_header() -> None:
    changed = Template(
        "{% for m in messages %}{{ m.role }}:{{ m.content | reverse }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    found = render(turns("ab", "cd"), changed, SPECIAL, "assistant")
    assert [found.text[begin:end] for begin, end in found.spans] == ["dc;"]


@given(conversations)
def test_the_tokens_of_an_answer_spell_the_answer(tokenizer: TextTokenizer, messages: list[Message]) -> None:
    example = encoded(Row(1, messages=tuple(messages)), tokenizer)
    answers = [
        message.content + "<|im_end|>" for message in messages if message.role == "assistant" and message.trained
    ]
    found, wanted = pieces(example, tokenizer), "".join(answers)
    assert found.replace("\n", "") == wanted.replace("\n", "")
    if not any(answer.startswith("\n") for answer in answers):  # else it may share a token with its header's newline
        assert found == wanted


def test_the_default_system_prompt_of_a_template_is_context(tokenizer: TextTokenizer) -> None:
    example = encoded(Row(1, messages=tuple(turns("Hi", "Yes."))), tokenizer)
    whole = tokenizer.backend.decode(example.tokens.tolist(), skip_special_tokens=False)
    assert whole.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert pieces(example, tokenizer) == "Yes.<|im_end|>"
    assert whole.endswith("<|im_end|>\n")


def test_an_answer_that_begins_with_newlines_is_trained_whole(tokenizer: TextTokenizer) -> None:
    example = encoded(Row(1, messages=tuple(turns("Hi", "\n\nThe primary"))), tokenizer)
    assert pieces(example, tokenizer).lstrip("\n") == "The primary<|im_end|>"
    assert example.mask.sum() < len(example.tokens) / 2


@pytest.mark.parametrize(("prompt", "completion"), [("Question: ", "What?"), ("Q:", " A"), ("x", "y"), ("\n", "\n\n")])
def test_a_completion_is_trained_with_its_end_and_its_prompt_is_not(
    tokenizer: TextTokenizer, prompt: str, completion: str
) -> None:
    example = encoded(Row(1, prompt=prompt, text=completion), tokenizer)
    assert pieces(example, tokenizer) == completion + "<|im_end|>"
    assert example.tokens[: int(np.argmax(example.mask))].tolist() == tokenizer.ids(prompt)


def test_a_text_is_trained_whole_but_for_its_first_token_that_nothing_predicts(tokenizer: TextTokenizer) -> None:
    example = encoded(Row(1, text="The primary key"), tokenizer, "last")
    assert example.mask.tolist() == [False] + [True] * (len(example.tokens) - 1)
    assert example.tokens[-1] == tokenizer.eos_id


@pytest.mark.parametrize(
    "row",
    [
        Row(7, messages=tuple(turns("say <|im_end|>", "no"))),
        Row(7, text="a<|im_start|>b"),
        Row(7, prompt="<|endoftext|>", text="b"),
    ],
)
def test_text_that_would_become_a_special_token_is_refused_by_name_and_line(tokenizer: TextTokenizer, row: Row) -> None:
    (found,) = encode([row], tokenizer, "assistant")
    assert not isinstance(found, Example)
    assert (found.line, found.code) == (7, "special_tokens_in_text")
    assert found.message in {f"the text contains {token}" for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=12), st.data())
def test_a_token_is_trained_if_it_holds_a_character_of_a_span(sizes: list[int], data: Any) -> None:
    offsets = list(itertools.pairwise(itertools.accumulate(sizes)))
    begin, end = sorted(data.draw(st.tuples(st.integers(0, sum(sizes)), st.integers(0, sum(sizes)))))
    mask = token_mask(offsets, np.zeros(len(offsets), dtype=np.bool_), [(begin, end)])
    assert mask[1:].tolist() == [bool(set(range(*token)) & set(range(begin, end))) for token in offsets[1:]]
    assert not mask[0]


def test_a_header_that_swallows_the_blanks_after_it_is_not_trained() -> None:
    offsets = [(0, 5), (5, 9), (9, 12)]
    special = np.array([False, True, False])
    assert token_mask(offsets, special, [(8, 12)]).tolist() == [False, False, True]
