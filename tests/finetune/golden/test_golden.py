"""Each family's masks are those that were read by eye, and its tokenizer ends and pads as its makers say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.data.omissions import prompt_surplus
from finetune.data.template import Template
from finetune.data.tokenizer import TextTokenizer
from tests.finetune.golden.families import FAMILIES
from tests.finetune.golden.write import MASKS, page

pytestmark = pytest.mark.unit

Load = Callable[[str], TextTokenizer]


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_are_those_that_were_read_by_eye(name: str, tokenizer_of: Load) -> None:
    written = (MASKS / f"{name}.txt").read_text(encoding="utf-8")
    assert page(FAMILIES[name], tokenizer_of(name)) == written, "run `python -m tests.finetune.golden.write`, and read"


def test_there_is_no_golden_file_without_a_family() -> None:
    assert {path.stem for path in MASKS.iterdir()} == set(FAMILIES)
    templates = {path.stem for path in (Path(__file__).parent / "templates").iterdir()}
    assert templates == {family.name for family in FAMILIES.values() if family.source is None}


@pytest.mark.parametrize(
    ("name", "closing"),
    [("gemma2", "<end_of_turn>"), ("phi3", "<|end|>"), ("llama3", "<|eot_id|>"), ("qwen3", "<|im_end|>")],
)
def test_generation_ends_at_the_token_that_closes_a_turn_and_padding_is_another(
    name: str, closing: str, tokenizer_of: Load
) -> None:
    tokenizer = tokenizer_of(name)
    assert tokenizer.eos_ids[0] == tokenizer.backend.token_to_id(closing)
    assert tokenizer.pad_id not in tokenizer.eos_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_only_a_template_that_begins_thoughts_and_drops_them_asks_with_more_than_it_trains(
    name: str, tokenizer_of: Load
) -> None:
    surplus = prompt_surplus(tokenizer_of(name).template)
    assert surplus == ("<think>\n" if name == "deepseek_r1" else "")


def test_a_template_that_begins_thoughts_and_keeps_them_is_well() -> None:
    kept = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
    assert prompt_surplus(Template(kept)) == ""
