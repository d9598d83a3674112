"""The numbers of a prepared dataset, what repeats in it and where, and the sentence that tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.arrays import Examples
from finetune.data.statistics import Counted
from finetune.data.tokenizer import TextTokenizer

pytestmark = pytest.mark.unit

Prepare = Callable[..., Path]


def chats(*numbers: int) -> bytes:
    """JSON Lines."""
    return b"".join(
        b'{"messages": [{"role": "user", "content": "Q%d"}, {"role": "assistant", "content": "%s"}]}\n' % (n, b"A" * n)
        for n in numbers
    )


def numbers(out: Path) -> dict[str, Any]:
    """statistics.json."""
    value: dict[str, Any] = json.loads((out / "prepared" / "statistics.json").read_text())
    return value


def test_the_numbers_are_those_of_the_arrays(prepare_files: Prepare) -> None:
    out = prepare_files({"a.jsonl": chats(*range(1, 21))}, {"v.jsonl": chats(31, 32)})
    for split in ("train", "validation"):
        examples, found = Examples(out / "prepared", split), numbers(out)[split]  # type: ignore[arg-type]  # a split
        lengths = examples.lengths
        assert (found["examples"], found["tokens"]) == (len(examples), len(examples.tokens))
        assert found["trained_tokens"] == int(examples.mask.sum())
        assert found["share_masked"] == round(1 - found["trained_tokens"] / found["tokens"], 4)
        assert found["tokens_a_row"] == {
            "min": lengths.min(),
            "median": np.median(lengths),
            "mean": round(float(lengths.mean()), 1),
            "p95": round(float(np.percentile(lengths, 95)), 1),
            "max": lengths.max(),
        }
        assert (found["longest"], found["longest_line"]) == (lengths.max(), examples.lines[lengths.argmax()])


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.floats(0, 1))
def test_a_share_of_lengths_is_numpy_s_percentile(lengths: list[int], share: float) -> None:
    counted = Counted(lengths=np.bincount(lengths))
    assert counted.at(share) == pytest.approx(np.percentile(lengths, 100 * share), abs=0.051)


def test_repeated_and_leaking_rows_are_named_with_file_and_line(prepare_files: Prepare) -> None:
    out = prepare_files(
        {"a.jsonl": chats(*range(1, 12), 3), "b.jsonl": chats(50, 5, 51)}, {"v.jsonl": chats(60, 50, 7)}
    )
    found = numbers(out)
    assert (found["duplicates"], found["leaked"]) == (2, 2)
    assert found["duplicate_rows"] == [
        {"file": "a.jsonl", "line": 12, "first": {"file": "a.jsonl", "line": 3}},
        {"file": "b.jsonl", "line": 2, "first": {"file": "a.jsonl", "line": 5}},
    ]
    assert found["leaked_rows"] == [
        {"file": "v.jsonl", "line": 2, "first": {"file": "b.jsonl", "line": 1}},
        {"file": "v.jsonl", "line": 3, "first": {"file": "a.jsonl", "line": 7}},
    ]
    assert "2 of those for validation also stand in training (lines 2, 3)" in found["message"]
    assert "2 repeated (lines a.jsonl:12, b.jsonl:2)" in found["message"]


def test_many_repeats_are_counted_and_the_first_ten_named(prepare_files: Prepare) -> None:
    out = prepare_files({"a.jsonl": chats(*range(1, 11), *[1] * 15)})
    assert numbers(out)["duplicates"] == 15
    assert [row["line"] for row in numbers(out)["duplicate_rows"]] == list(range(11, 21))
    assert "15 repeated (lines 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, …)" in numbers(out)["message"]


def test_what_is_cut_to_the_same_is_the_same(prepare_files: Prepare) -> None:
    rows = [{"text": f"{'word ' * 40}{n}"} for n in range(12)]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    out = prepare_files({"a.jsonl": lines}, data={"overlength": "truncate"}, max_length=20)
    assert numbers(out)["truncated"]["train"] == {"rows": 12, "lines": list(range(1, 11))}
    assert numbers(out)["duplicates"] == 11
    assert "12 too long and cut (lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …)" in numbers(out)["message"]


def test_what_changes_the_meaning_of_a_result_is_a_warning(prepare_files: Prepare) -> None:
    assert numbers(prepare_files({"a.jsonl": chats(*range(1, 12), 3)}, {"v.jsonl": chats(20)}))["warnings"] == 0
    assert numbers(prepare_files({"a.jsonl": chats(*range(1, 12))}, {"v.jsonl": chats(3, 4)}, out="b"))["warnings"] == 2


def test_weights_choose_the_turns_that_are_trained(prepare_files: Prepare, tokenizer: TextTokenizer) -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "one", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "two", "weight": 1},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "three"},
    ]
    lines = json.dumps({"messages": turns}).encode() + b"\n"
    for train_on, wanted in (("assistant", ["two", "three"]), ("last", ["three"])):
        out = prepare_files({"a.jsonl": lines * 10}, out=train_on, data={"train_on": train_on})
        row = Examples(out / "prepared", "train")[0]
        said = tokenizer.backend.decode(row.tokens[row.mask].tolist(), skip_special_tokens=False)
        assert said == "".join(f"{text}<|im_end|>" for text in wanted)
