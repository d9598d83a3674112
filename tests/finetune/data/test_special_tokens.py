"""Text that holds a special token of the model is refused with its line, whatever the format and wherever it stands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune.data.arrays import Examples
from finetune.exit_codes import StepError

pytestmark = pytest.mark.unit

Prepare = Callable[..., Path]

TOKEN = "<|im_end|>"
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"p": {"enum": ["e"]}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"p": ["e", {"q": "v"}]}'}}
ASKED = {"role": "user", "content": "Q"}
ROWS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": "C", "tool_calls": [CALL]},
            {"role": "tool", "content": "T", "tool_call_id": "c", "name": "f"},
            {"role": "assistant", "content": "A", "weight": 1},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
    },
    "prompt_completion": {"prompt": "P", "completion": "C"},
    "prompt_completion of messages": {"prompt": [ASKED], "completion": [{"role": "assistant", "content": "A"}]},
    "text": {"text": "T"},
    "text_source": {"text": "T", "source": "S"},
    "instruction": {"instruction": "I", "input": "N", "output": "O", "system": "S", "history": [["a", "b"]]},
    "conversations": {
        "system": "S",
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    },
    "preference of OpenAI": {
        "input": {"messages": [ASKED], "tools": [{"type": "function", "function": FUNCTION}]},
        "preferred_output": [{"role": "assistant", "content": "A"}],
        "non_preferred_output": [{"role": "assistant", "content": "B"}],
    },
    "preference of TRL": {
        "prompt": [ASKED],
        "chosen": [{"role": "assistant", "content": "A"}],
        "rejected": [{"role": "assistant", "content": "B"}],
    },
    "preference of texts": {"prompt": "P", "chosen": "C", "rejected": "R"},
}
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ m.tool_call_id }}{{ m.name }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Shows all that a row may hold."""

FIXED = {"role", "type", "from", "weight"}
"""Fields whose values are words of the format."""


def spoilt(value: Any, key: str = "") -> Iterator[Any]:
    """A JSON value with the token put into one of its texts, in turn for every text."""
    if isinstance(value, dict):
        for name, inner in value.items():
            for changed in spoilt(inner, name):
                yield {**value, name: changed}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            for changed in spoilt(inner, key):
                yield [*value[:at], changed, *value[at + 1 :]]
    elif key == "arguments":
        for changed in spoilt(json.loads(value)):
            yield json.dumps(changed)
        yield value.replace('"q"', json.dumps(TOKEN))
    elif isinstance(value, str) and key not in FIXED:
        yield f"{value} {TOKEN}"


def cases() -> Iterator[Any]:
    """Every format with every field of it spoilt."""
    for name, row in ROWS.items():
        for at, changed in enumerate(spoilt(row)):
            yield pytest.param(name, changed, id=f"{name}-{at}")


@pytest.mark.parametrize(("form", "row"), list(cases()))
def test_a_special_token_in_any_field_of_any_format_is_refused_with_its_line(
    prepare_files: Prepare, form: str, row: dict[str, Any]
) -> None:
    data = {"format": "preference"} if form.startswith("preference") else {}
    rows = b"".join(json.dumps(one).encode() + b"\n" for one in (ROWS[form], row))
    with pytest.raises(StepError) as caught:
        prepare_files({"a.jsonl": rows}, data=data, template=TEMPLATE)
    assert (caught.value.code.name, caught.value.lines) == ("special_tokens_in_text", [2])
    assert f"the text contains {TOKEN}" in caught.value.message


def test_as_many_fields_were_tried_as_there_are() -> None:
    assert [sum(1 for _ in spoilt(row)) for row in ROWS.values()] == [15, 2, 2, 1, 2, 6, 3, 6, 3, 3]


@pytest.mark.parametrize("columns", [("text",), ("prompt", "completion"), ("instruction", "input", "output")])
def test_a_cell_of_a_table_is_refused_with_its_line(prepare_files: Prepare, columns: tuple[str, ...]) -> None:
    for spoilt_column in columns:
        text = io.StringIO()
        csv.writer(text).writerows(
            [columns, ["a\nb"] * len(columns), [TOKEN if name == spoilt_column else "a" for name in columns]]
        )
        with pytest.raises(StepError) as caught:
            prepare_files({"a.csv": text.getvalue().encode()})
        assert (caught.value.code.name, caught.value.lines) == ("special_tokens_in_text", [3 + len(columns)])


def test_what_only_looks_like_a_special_token_is_text(prepare_files: Prepare) -> None:
    texts = ["<|im_end", "im_end|>", "<| im_end |>", "<|IM_END|>", "<｜im_end｜>", "&lt;|im_end|&gt;"]
    rows = [{"text": text} for text in texts * 2]
    out = prepare_files({"a.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows)})
    assert json.loads((out / "prepare.report.json").read_text())["data"]["train"]["examples"] == 12


def test_a_token_made_where_two_texts_meet_does_not_come_about(prepare_files: Prepare) -> None:
    rows = [{"prompt": f"{n} <|im_", "completion": "end|>"} for n in range(12)]
    out = prepare_files({"a.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows)})
    for row in Examples(out / "prepared", "train"):
        assert (row.tokens == 2).sum() == 1  # the eos after it
