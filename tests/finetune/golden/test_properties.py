"""Whatever is said in a conversation: the answers and what closes them are trained, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.data.encode import Example, encode
from finetune.data.masks import Rendered, render
from finetune.data.row import Message, Row
from finetune.data.tokenizer import TextTokenizer
from tests.finetune.golden.families import FAMILIES

pytestmark = pytest.mark.unit

Load = Callable[[str], TextTokenizer]
TrainOn = Literal["assistant", "last", "all"]
NAMES = st.sampled_from(sorted(FAMILIES))

NO_SYSTEM = {"mistral_v1", "gemma2"}
NO_THOUGHT = "<think>\n\n</think>\n\n"

SHOWN: dict[str, Callable[[str], str]] = {
    "llama2": lambda said: f" {said.strip()} </s>",
    "llama3": lambda said: f"{said.strip()}<|eot_id|>",
    "llama31": lambda said: f"{said.strip()}<|eot_id|>",
    "mistral_v1": lambda said: f" {said}</s>",
    "mistral_v3": lambda said: f" {said.strip()}</s>",
    "deepseek_v2": lambda said: f" {said}<｜end▁of▁sentence｜>",
    "deepseek_v3": lambda said: f"{said}<｜end▁of▁sentence｜>",
    "deepseek_r1": lambda said: f"{said}<｜end▁of▁sentence｜>",
    "gemma2": lambda said: f"{said.strip()}<end_of_turn>",
    "gemma3": lambda said: f"{said.strip()}<end_of_turn>",
    "phi3": lambda said: f"{said}<|end|>",
    "plain": lambda said: f" {said}<|endoftext|>",
    **dict.fromkeys(("qwen25", "qwen3", "phi4", "smollm2", "chatml"), lambda said: f"{said}<|im_end|>"),
}
"""What a family's template makes of an answer, from where the model begins to write to what closes the turn."""

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
words = st.one_of(
    st.text(letters, max_size=12), st.sampled_from(["Yes.", "The key", "a b", "[INST]", "{{ x }}", "User:"])
)
padded = st.builds(
    lambda left, core, right: left + core + right,
    st.sampled_from(["", "", "\n", " ", "\n\n "]),
    words,
    st.sampled_from(["", "", "\n", " \n"]),
)
conversations = st.builds(
    lambda system, rounds: [*system, *(turn for pair in rounds for turn in pair)],
    st.one_of(st.just([]), words.map(lambda text: [Message("system", text)])),
    st.lists(
        st.tuples(padded.map(lambda text: Message("user", text)), st.builds(Message, st.just("assistant"), padded, st.booleans())),
        min_size=1,
        max_size=3,
    ),
)  # fmt: skip


def fitting(turns: list[Message], name: str, tokenizer: TextTokenizer) -> list[Message]:
    """A conversation that the family's template takes."""
    assume(not any(tokenizer.special.search(turn.content) for turn in turns))
    return [turn for turn in turns if turn.role != "system"] if name in NO_SYSTEM else turns


def wanted(turns: Sequence[Message], name: str, train_on: TrainOn) -> list[str]:
    """The texts that carry loss."""
    answers = [turn for turn in turns if turn.role == "assistant"]
    texts = [SHOWN[name](turn.content) for turn in answers]
    if name == "qwen3":
        texts[-1] = NO_THOUGHT + SHOWN[name](answers[-1].content.lstrip("\n"))
    chosen = range(len(answers))[-1:] if train_on == "last" else range(len(answers))
    return [texts[index] for index in chosen if answers[index].trained]


@settings(max_examples=120)
@given(conversations, NAMES, st.sampled_from(["assistant", "last"]))
def test_the_answers_and_their_ends_are_trained_to_the_letter(
    tokenizer_of: Load, turns: list[Message], name: str, train_on: TrainOn
) -> None:
    tokenizer = tokenizer_of(name)
    turns = fitting(turns, name, tokenizer)
    found = render(turns, tokenizer.template, tokenizer.special, train_on)
    assert [found.text[begin:end] for begin, end in found.spans] == wanted(turns, name, train_on)
    assert found.closed


@settings(max_examples=120)
@given(conversations, NAMES)
def test_all_trains_everything_but_answers_of_weight_zero(tokenizer_of: Load, turns: list[Message], name: str) -> None:
    tokenizer = tokenizer_of(name)
    turns = fitting(turns, name, tokenizer)
    found = render(turns, tokenizer.template, tokenizer.special, "all")
    turned = [replace(turn, trained=not turn.trained) if turn.role == "assistant" else turn for turn in turns]
    silent = wanted(turned, name, "assistant")
    assert sum(end - begin for begin, end in found.spans) == len(found.text) - sum(map(len, silent))
    assert all(begin < end for begin, end in found.spans)


@settings(max_examples=120)
@given(conversations, NAMES, st.sampled_from(["assistant", "last", "all"]))
def test_a_token_is_trained_if_and_only_if_it_holds_a_trained_character(
    tokenizer_of: Load, turns: list[Message], name: str, train_on: TrainOn
) -> None:
    tokenizer = tokenizer_of(name)
    turns = fitting(turns, name, tokenizer)
    found = render(turns, tokenizer.template, tokenizer.special, train_on)
    (example,) = encode([Row(1, tuple(turns))], tokenizer, train_on)
    assert isinstance(example, Example)
    offsets = tokenizer.encode([found.text])[0].offsets
    assert len(offsets) == len(example.tokens)
    assert example.mask.tolist() == expected(found, offsets, tokenizer.is_special(example.tokens).tolist())


def expected(found: Rendered, offsets: Sequence[tuple[int, int]], special: Sequence[bool]) -> list[bool]:
    """The mask, character by character. A special token counts by its first one: it may swallow blanks."""
    trained = {at for begin, end in found.spans for at in range(begin, end)}
    mask = [
        begin in trained if marked or begin == end else not trained.isdisjoint(range(begin, end))
        for (begin, end), marked in zip(offsets, special, strict=True)
    ]
    return [False, *mask[1:]]


@settings(max_examples=120)
@given(conversations, NAMES)
def test_each_trained_answer_ends_with_the_token_that_closes_turns(
    tokenizer_of: Load, turns: list[Message], name: str
) -> None:
    tokenizer = tokenizer_of(name)
    turns = fitting(turns, name, tokenizer)
    (example,) = encode([Row(1, tuple(turns))], tokenizer, "assistant")
    assert isinstance(example, Example)
    runs = [
        token
        for token, here, after in zip(example.tokens, example.mask, [*example.mask[1:], False], strict=True)
        if here and not after
    ]
    assert set(runs) <= {tokenizer.eos_ids[0]}
    trained = sum(turn.role == "assistant" and turn.trained for turn in turns)
    assert (example.tokens[example.mask] == tokenizer.eos_ids[0]).sum() == trained


@settings(max_examples=120)
@given(conversations, NAMES.filter(lambda name: name != "deepseek_r1"))
def test_what_stands_before_the_last_answer_is_what_the_model_is_asked_with(
    tokenizer_of: Load, turns: list[Message], name: str
) -> None:
    """But for an answer that begins with blanks: these may share a token with the header's."""
    tokenizer = tokenizer_of(name)
    turns = fitting(turns, name, tokenizer)
    last = replace(turns[-1], trained=True)
    assume(last.content[:1].strip())
    (example,) = encode([Row(1, (*turns[:-1], last))], tokenizer, "last")
    assert isinstance(example, Example)
    assert example.tokens[: example.mask.tolist().index(True)].tolist() == tokenizer.prompt(turns[:-1])


def test_the_last_blanks_of_an_answer_are_trained_where_only_another_answer_is_stripped(tokenizer_of: Load) -> None:
    asked = Message("user", "a")
    turns = [asked, Message("assistant", "One\n"), asked, Message("assistant", "\nTwo")]
    tokenizer = tokenizer_of("qwen3")
    found = render(turns, tokenizer.template, tokenizer.special, "assistant")
    assert [found.text[begin:end] for begin, end in found.spans] == wanted(turns, "qwen3", "assistant")
