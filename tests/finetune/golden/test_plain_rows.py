"""Prompts with completions and plain texts, over every kind of tokenizer: what is trained is what follows the prompt."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.data.encode import Example, encode
from finetune.data.row import Row
from finetune.data.tokenizer import TextTokenizer
from tests.finetune.golden.families import FAMILIES

pytestmark = pytest.mark.unit

Load = Callable[[str], TextTokenizer]
KINDS = st.sampled_from(["llama2", "llama3", "mistral_v3", "gemma2", "phi3", "plain"])
"""One family of each kind of tokenizer, and one whose special tokens swallow blanks."""

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
texts = st.builds(
    lambda left, core, right: left + core + right,
    st.sampled_from(["", "", " ", "\n", ":"]),
    st.one_of(st.text(letters, min_size=1, max_size=10), st.sampled_from(["The key", "12345", "Yes."])),
    st.sampled_from(["", "", " ", "\n", ":\n"]),
)


def example(tokenizer: TextTokenizer, row: Row, train_on: str = "assistant") -> Example:
    """Of a row that must become one."""
    assume(not any(tokenizer.special.search(text) for text in row.texts()))
    (found,) = encode([row], tokenizer, train_on)  # type: ignore[arg-type]
    assert isinstance(found, Example)
    return found


@settings(max_examples=120)
@given(KINDS, texts, texts)
def test_a_prompt_has_the_tokens_it_is_asked_with_and_everything_after_it_is_trained(
    tokenizer_of: Load, name: str, prompt: str, completion: str
) -> None:
    tokenizer = tokenizer_of(name)
    found = example(tokenizer, Row(1, prompt=prompt, text=completion))
    asked = [*tokenizer.lead, *tokenizer.ids(prompt)]
    assert found.tokens[: len(asked)].tolist() == asked
    assert found.mask.tolist() == [False] * len(asked) + [True] * (len(found.tokens) - len(asked))
    assert found.tokens[-1] == tokenizer.eos_id
    if FAMILIES[name].kind == "bytes":
        assert tokenizer.decode(found.tokens[len(asked) :]) == completion


@settings(max_examples=100)
@given(KINDS, texts, st.sampled_from(["assistant", "last", "all"]))
def test_a_text_is_trained_whole_but_for_what_nothing_predicts(
    tokenizer_of: Load, name: str, text: str, train_on: str
) -> None:
    tokenizer = tokenizer_of(name)
    found = example(tokenizer, Row(1, text=text), train_on)
    assert found.tokens.tolist() == [*tokenizer.lead, *tokenizer.ids(text), tokenizer.eos_id]
    assert found.mask.tolist() == [False] + [True] * (len(found.tokens) - 1)
