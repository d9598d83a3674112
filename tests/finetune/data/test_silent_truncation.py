"""Nothing of a dataset is cut in silence: limits that come with a tokenizer are none of ours, and what is cut by wish is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer
from finetune.exit_codes import StepError

pytestmark = pytest.mark.unit

Prepare = Callable[..., Path]
ROWS = [
    {"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": f"word {n} " * 60}]}
    for n in range(12)
]


@pytest.fixture
def cutting(base: Path, tmp_path: Path) -> Path:
    """The base with a tokenizer that cuts: in tokenizer.json, and by the length its configuration names."""
    folder = tmp_path / "cutting"
    shutil.copytree(base, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {
        "strategy": {"Fixed": 400}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    named = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(named | {"model_max_length": 16}))
    return folder


def test_a_tokenizer_that_cuts_cuts_nothing_here(prepared: Prepare, cutting: Path, tokenizer: TextTokenizer) -> None:
    whole, same = prepared(ROWS, out="whole"), prepared(ROWS, base=cutting, out="same")
    examples, others = (Examples(out / "prepared", "train") for out in (whole, same))
    assert np.array_equal(examples.tokens, others.tokens)
    assert np.array_equal(examples.mask, others.mask)
    assert int(examples.lengths.min()) > 100
    for number, row in enumerate(ROWS):
        example = examples[number]
        said = tokenizer.backend.decode(example.tokens[example.mask].tolist(), skip_special_tokens=False)
        assert said == row["messages"][1]["content"] + "<|im_end|>"


def test_without_being_asked_nothing_is_cut_and_every_row_is_named(prepared: Prepare) -> None:
    with pytest.raises(StepError) as refusal:
        prepared(ROWS, max_length=100)
    assert refusal.value.code.name == "overlength_examples"
    assert refusal.value.lines[:10] == list(range(1, 11))


def test_what_is_cut_by_wish_is_told_as_a_warning_and_kept_in_the_record(prepared: Prepare) -> None:
    out = prepared(ROWS, max_length=100, data={"overlength": "truncate"})
    report = json.loads((out / "prepare.report.json").read_text())
    assert "12 too long and cut (lines 1, 2, " in report["message"]
    assert report["data"]["warnings"] > 0
    assert json.loads((out / "prepared" / "resolved.json").read_text())["truncated"] == 12
    assert json.loads((out / "prepared" / "statistics.json").read_text())["truncated"]["train"]["rows"] == 12
