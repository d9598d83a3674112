"""The same text, ids and masks as transformers makes of the same folders; masks where a template has `{% generation %}`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import pytest

from finetune.data.encode import Example, encode
from finetune.data.row import Row
from finetune.data.template import TemplateError
from finetune.data.tokenizer import TextTokenizer
from tests.finetune.golden.conversations import CONVERSATIONS
from tests.finetune.golden.families import FAMILIES

pytestmark = pytest.mark.train

MARKED = [name for name, family in FAMILIES.items() if "generation %}" in family.template]


@pytest.fixture(scope="session")
def theirs_of(base_of: Callable[[str], Path]) -> Callable[[str], Any]:
    """transformers' tokenizer of a family."""
    from transformers import AutoTokenizer

    return lru_cache(lambda name: AutoTokenizer.from_pretrained(base_of(name)))


def rows(tokenizer: TextTokenizer) -> dict[str, tuple[Row, Example]]:
    """The conversations that a family takes, and what we make of them."""
    found = {name: (row, next(iter(encode([row], tokenizer, "assistant")))) for name, row in CONVERSATIONS.items()}
    return {name: (row, example) for name, (row, example) in found.items() if isinstance(example, Example)}


def as_json(row: Row) -> list[dict[str, Any]]:
    """The turns as transformers takes them."""
    return [turn.as_json() for turn in row.messages]


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_transformers(
    name: str, tokenizer_of: Callable[[str], TextTokenizer], theirs_of: Callable[[str], Any]
) -> None:
    tokenizer, theirs = tokenizer_of(name), theirs_of(name)
    taken = rows(tokenizer)
    assert len(taken) >= 6
    for row, example in taken.values():
        whole = theirs.apply_chat_template(as_json(row), tools=list(row.tools) or None, return_dict=False)
        assert example.tokens.tolist() == whole


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_those_of_transformers(
    name: str, tokenizer_of: Callable[[str], TextTokenizer], theirs_of: Callable[[str], Any]
) -> None:
    tokenizer, theirs = tokenizer_of(name), theirs_of(name)
    compared = 0
    for row in CONVERSATIONS.values():
        ours = wanted = None
        with contextlib.suppress(TemplateError):
            ours = tokenizer.ids(
                tokenizer.template.with_tools(row.tools).render(row.messages[:-1], add_generation_prompt=True)
            )
        with contextlib.suppress(jinja2.TemplateError):
            wanted = theirs.apply_chat_template(
                as_json(row)[:-1], tools=list(row.tools) or None, add_generation_prompt=True, return_dict=False
            )
        assert ours == wanted
        compared += ours is not None
    assert compared >= 6


@pytest.mark.parametrize("name", MARKED)
def test_masks_are_those_of_generation_markers(
    name: str, tokenizer_of: Callable[[str], TextTokenizer], theirs_of: Callable[[str], Any]
) -> None:
    taken = rows(tokenizer_of(name))
    weighty = [pair for pair in taken.values() if all(turn.trained for turn in pair[0].messages)]  # markers know no 0
    assert len(weighty) >= 6
    for row, example in weighty:
        marked = theirs_of(name).apply_chat_template(as_json(row), return_dict=True, return_assistant_tokens_mask=True)
        assert marked["input_ids"] == example.tokens.tolist()
        assert marked["assistant_masks"] == example.mask.astype(int).tolist()


def test_most_kinds_of_template_are_compared_with_markers() -> None:
    assert set(MARKED) >= {"llama2", "llama3", "deepseek_v2", "gemma2", "phi4", "smollm2"}
