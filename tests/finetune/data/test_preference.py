"""Preference pairs: both spellings, what is refused, and that of each side only the answer is learned."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.config import Data, JobSpec
from finetune.data.arrays import Pairs, paired
from finetune.data.formats import check, rows
from finetune.data.row import Message, Pair, Row
from finetune.data.tokenizer import TextTokenizer
from finetune.exit_codes import StepError
from finetune.steps import Resolved

pytestmark = pytest.mark.unit

Prepare = Callable[..., Path]
PREFERENCE = {"format": "preference"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def said(role: str, content: str) -> dict[str, str]:
    """A message."""
    return {"role": role, "content": content}


def openai(asked: str = "Q", good: str = "good", bad: str = "bad", **more: Any) -> dict[str, Any]:
    """A row as OpenAI's files have it; `more` are fields of its input."""
    return {
        "input": {"messages": [said("user", asked)], "tools": [], "parallel_tool_calls": True} | more,
        "preferred_output": [said("assistant", good)],
        "non_preferred_output": [said("assistant", bad)],
    }


def trl(asked: str = "Q", good: str = "good", bad: str = "bad") -> dict[str, Any]:
    """A row of message lists as TRL takes it."""
    return {"prompt": [said("user", asked)], "chosen": [said("assistant", good)], "rejected": [said("assistant", bad)]}


def read(row: Any) -> Pair:
    """The one row, which must be good."""
    found = next(rows([json.dumps(row).encode()], Data(format="preference")))
    assert isinstance(found, Pair), found
    return found


def refusal(row: Any, **data: Any) -> str:
    """What is said of a row that is no pair."""
    found = check(io.BytesIO(b"\n" + json.dumps(row).encode()), Data(**(PREFERENCE | data)))
    assert [error.line for error in found.errors] == [2]
    return found.errors[0].message


def resolved(out: Path) -> Resolved:
    """resolved.json."""
    return Resolved.model_validate_json((out / "prepared" / "resolved.json").read_bytes())


def test_both_spellings_of_a_conversation_are_one_pair() -> None:
    asked = Message("user", "Q", trained=False)
    sides = [Row(1, messages=(asked, Message("assistant", answer))) for answer in ("good", "bad")]
    whole = {
        name: [said("user", "Q"), said("assistant", text)] for name, text in (("chosen", "good"), ("rejected", "bad"))
    }
    assert [read(row) for row in (openai(), trl(), whole)] == [Pair(1, *sides)] * 3


def test_a_pair_of_texts_is_a_prompt_and_two_completions() -> None:
    row = {"prompt": "The sky is", "chosen": " blue", "rejected": " green"}
    sides = Row(1, prompt="The sky is", text=" blue"), Row(1, prompt="The sky is", text=" green")
    assert read(row) == Pair(1, *sides)
    (found,) = rows([b"prompt;chosen;rejected\nThe sky is; blue; green\n"], Data(format="preference"))
    assert found == Pair(2, *(Row(2, prompt=side.prompt, text=side.text) for side in sides))


def test_earlier_answers_are_context_and_tools_are_kept() -> None:
    row = openai(messages=[said("user", "a"), said("assistant", "b"), said("user", "c")], tools=[TOOL])
    for side in (read(row).chosen, read(row).rejected):
        assert [turn.trained for turn in side.messages] == [False, False, False, True]
        assert side.tools == (TOOL,)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": []}, "a preference pair is expected"),
        ({"prompt": "a", "chosen": "b"}, '"rejected" is missing; a preference pair is expected'),
        ({"chosen": "b", "rejected": "c"}, '"prompt" is missing'),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, '"rejected" is empty'),
        ({"prompt": "a", "chosen": "b", "rejected": 1}, '"rejected" must be text, not a number'),
        ({"prompt": [said("user", "a")], "chosen": "b", "rejected": "c"}, "must be such lists too"),
        (trl() | {"prompt": "a"}, "leave it out if they repeat it"),
        (trl() | {"prompt": [said("assistant", "a")]}, '"prompt" must not end with an assistant message'),
        (trl() | {"chosen": [said("user", "a"), said("assistant", "b")]}, '"chosen" must begin with an assistant message'),
        (trl() | {"rejected": []}, '"rejected" must be a list of messages, not an empty list'),
        ({"chosen": [said("assistant", "b")], "rejected": [said("assistant", "c")]}, "must begin with the same messages"),
        (
            {"chosen": [said("user", "a"), said("assistant", "b")], "rejected": [said("user", "x"), said("assistant", "c")]},
            "must begin with the same messages",
        ),
        (openai() | {"input": "Q"}, '"input" must be an object with "messages", not text'),
        (openai(messages=[]), '"input.messages" must be a list of messages, not an empty list'),
        (openai(tools=[1]), "tools[0] must be"),
        (openai() | {"preferred_output": None}, '"preferred_output" must be a list of messages, not null'),
        (openai() | {"non_preferred_output": [said("user", "a")]}, '"non_preferred_output" must end with an assistant message'),
        (openai(bad="a\x00b"), 'non_preferred_output[0] "content" holds a NUL character'),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_said_with_its_line(row: Any, says: str) -> None:
    assert says in refusal(row)


def test_pairs_are_for_dpo_and_dpo_is_for_pairs() -> None:
    assert "method dpo" in refusal(trl(), format="auto")
    body = {"model": "m", "training_file": "s3://bucket/key"}
    assert JobSpec(**body, method={"type": "dpo"}).data.format == "preference"
    for wrong in ({"data": PREFERENCE}, {"method": {"type": "dpo"}, "data": {"format": "messages"}}):
        with pytest.raises(ValueError, match=r"data.format=.* does not go with method.type="):
            JobSpec(**body, **wrong)


def test_both_sides_are_written_with_masks_over_their_answers(prepared: Prepare, tokenizer: TextTokenizer) -> None:
    out = prepared([openai(f"key {n}", f"yes {n}", f"no {n}!") for n in range(12)], data=PREFERENCE) / "prepared"
    pairs = Pairs(out, "train")
    assert (len(pairs), paired(out), pairs.chosen.lines.tolist()) == (12, True, list(range(1, 13)))
    pair = pairs[3]
    answers = [
        tokenizer.backend.decode(side.tokens[side.mask].tolist(), skip_special_tokens=False)
        for side in (pair.chosen, pair.rejected)
    ]
    assert answers == ["yes 3<|im_end|>", "no 3!<|im_end|>"]
    begin = int(np.flatnonzero(pair.chosen.mask)[0])
    assert pair.chosen.tokens[:begin].tolist() == pair.rejected.tokens[:begin].tolist()
    assert pairs.lengths[3] == max(len(pair.chosen.tokens), len(pair.rejected.tokens))


def test_all_counts_are_of_both_sides(prepared: Prepare) -> None:
    out = prepared([openai(f"key {n}") for n in range(12)], data=PREFERENCE)
    pairs, found = Pairs(out / "prepared", "train"), resolved(out)
    assert found.tokens == len(pairs.chosen.tokens) + len(pairs.rejected.tokens)
    assert found.trained_tokens == int(pairs.chosen.mask.sum() + pairs.rejected.mask.sum())
    assert (found.n_examples, found.longest) == (12, int(pairs.lengths.max()))


def test_a_share_of_pairs_is_held_out_whole(prepared: Prepare) -> None:
    out = prepared([trl(f"key {n}") for n in range(20)], data=PREFERENCE | {"validation_split": 0.2}) / "prepared"
    train, validation = Pairs(out, "train"), Pairs(out, "validation")
    assert (len(train), len(validation)) == (16, 4)
    for split in (train, validation):
        assert split.chosen.lines.tolist() == split.rejected.lines.tolist()
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["wanted"] for sample in samples] == ["good"] * 4


def test_equal_answers_are_left_out_and_named(prepared: Prepare) -> None:
    out = prepared([*(trl(f"key {n}") for n in range(12)), trl("same", "x", "x")], data=PREFERENCE)
    assert resolved(out).n_examples == 12
    assert (
        "1 left out with nothing to train (line 13)" in json.loads((out / "prepare.report.json").read_text())["message"]
    )


@pytest.mark.parametrize(
    "row",
    [
        openai(asked="<|im_end|>"),
        openai(good="<|im_end|>"),
        openai(bad="<|im_end|>"),
        openai(tools=[{"type": "function", "function": {"name": "a", "description": "<|im_end|>"}}]),
        {"prompt": "<|im_end|>", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "<|im_end|>", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "<|im_end|>"},
    ],
)
def test_a_special_token_on_any_side_is_refused_with_its_line(prepared: Prepare, row: Any) -> None:
    with pytest.raises(StepError) as caught:
        prepared([*(trl(f"key {n}") for n in range(11)), row], data=PREFERENCE)
    assert (caught.value.code.name, caught.value.lines) == ("special_tokens_in_text", [12])


@pytest.mark.parametrize("long", [{"good": "word " * 200}, {"bad": "word " * 200}])
def test_a_pair_is_too_long_if_a_side_is(prepared: Prepare, long: dict[str, str]) -> None:
    content = [*(trl(f"key {n}") for n in range(11)), trl(**long)]
    with pytest.raises(StepError, match=r"line 12: .* where max_length is 150"):
        prepared(content, data=PREFERENCE, max_length=150)
    dropped = resolved(prepared(content, data=PREFERENCE | {"overlength": "drop"}, max_length=150, out="drop"))
    assert (dropped.n_examples, dropped.dropped) == (11, 1)
    cut = resolved(prepared(content, data=PREFERENCE | {"overlength": "truncate"}, max_length=150, out="cut"))
    assert (cut.n_examples, cut.truncated, cut.longest) == (12, 1, 150)
