"""Rows of datasets: what is taken, what is refused with its line, and that nothing a file holds raises."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Data
from finetune.data.formats import MAX_LINES_NAMED, Report, check, rows
from finetune.data.row import Message, Row
from finetune.exit_codes import StepError

pytestmark = pytest.mark.unit


def chat(question: str = "What?", answer: Any = "That.", **extra: Any) -> dict[str, Any]:
    """A row of two messages; `extra` are fields of the second."""
    asked = {"role": "user", "content": question}
    return {"messages": [asked, {"role": "assistant", "content": answer, **extra}]}


def jsonl(values: list[Any]) -> bytes:
    """JSON Lines."""
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def report(*lines: Any, **data: Any) -> Report:
    """A check of rows; bytes stand for themselves."""
    content = b"".join(line + b"\n" if isinstance(line, bytes) else jsonl([line]) for line in lines)
    return check(io.BytesIO(content), Data(**data))


def first(row: Any, **data: Any) -> Row:
    """The one row, which must be good."""
    found = next(rows([jsonl([row])], Data(**data)))
    assert isinstance(found, Row), found
    return found


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(), "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"text": "a"}, "text"),
        ({"text": "a", "source": "b"}, "text_source"),
        ({"instruction": "a", "input": "", "output": "b"}, "instruction"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "conversations"),
    ],
)
def test_the_format_is_told_by_the_first_row(row: Any, expected: str) -> None:
    found = report(*[row] * 12)
    assert (found.format, found.n_examples, found.errors, found.complete) == (expected, 12, [], True)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (b"{not json", "not JSON: Expecting property name"),
        (b"\xff\xfe{}", "not UTF-8: byte 0xff at position 1"),
        (b"\x00\x01", "not JSON"),
        (b"[" * 50_000, "not JSON"),
        (b'{"a":' * 50_000, "not JSON"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "not JSON"),
        ([1, 2], "a JSON object is expected, not a list"),
        ({"messages": []}, "not an empty list"),
        ({"messages": ["hi"]}, "messages[0] must be an object, not text"),
        ({"messages": [{"role": "user", "content": "a"}]}, '"messages" must end with an assistant message'),
        ({"messages": [{"role": "bot", "content": "a"}]}, 'must be system, user, assistant or tool, not "bot"'),
        ({"messages": [{"content": "a"}]}, "must be system, user, assistant or tool, not null"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, 'not ["user"]'),
        ({"messages": [{"role": "assistant", "content": None}]}, '"content" must be text, not null'),
        ({"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]}, "may hold text parts only"),
        (chat(answer="a\x00b"), "holds a NUL character"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud83d"}]}', "half of a surrogate pair"),
        (chat(weight=2), '"weight" must be 0 or 1, not 2'),
        (chat(weight=True), '"weight" must be 0 or 1, not true'),
        ({"messages": [{"role": "user", "content": "a", "weight": 0}]}, '"weight" is for assistant messages only'),
        ({"text": "other"}, '"messages" is missing'),
    ],
)
def test_a_bad_row_is_named_with_its_line(row: Any, sentence: str) -> None:
    found = report(chat(), chat(), row, chat())
    assert [error.line for error in found.errors] == [3]
    assert sentence in found.errors[0].message
    assert found.n_examples == 3


def test_a_first_row_of_no_known_format_says_what_is_expected() -> None:
    assert 'expected "messages", or' in report({"question": "a", "answer": "b"}).sentence()
    assert "method dpo" in report({"prompt": "a", "chosen": "b", "rejected": "c"}).sentence()


def test_every_kind_of_error_is_named_although_one_kind_comes_a_thousand_times() -> None:
    found = report(chat(), *[b"x"] * 1000, {"messages": []}, chat(weight=7))
    assert len(found.errors) == MAX_LINES_NAMED
    assert {error.line for error in found.errors} >= {2, 1002, 1003}
    assert found.sentence().endswith("and 992 more.")


def test_what_a_row_becomes() -> None:
    found = first(
        {"messages": [{"role": "developer", "content": "s"}, *chat(weight=0)["messages"], *chat("x", "y")["messages"]]}
    )
    assert [(message.role, message.trained) for message in found.messages] == [
        ("system", True),
        ("user", True),
        ("assistant", False),
        ("user", True),
        ("assistant", True),
    ]
    assert first({"prompt": "a", "completion": "b"}) == Row(1, prompt="a", text="b")
    assert (
        first({"text": "{source}", "source": "b"}, text_template="T: {text} S: {source} {x}").text
        == "T: {source} S: b {x}"
    )
    assert (
        first(chat(answer=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])).messages[1].content == "ab"
    )


def test_a_prompt_of_messages_is_context_and_its_completion_is_learned() -> None:
    row = {
        "prompt": chat()["messages"] + [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    }
    assert [message.trained for message in first(row).messages if message.role == "assistant"] == [False, True]
    assert first(row).messages[-1] == Message("assistant", "a")


@pytest.mark.parametrize(
    ("content", "code", "told"),
    [
        (b"", "invalid_file_format", "s3://b/k is empty."),
        (b"\n\n", "invalid_file_format", "s3://b/k is empty."),
        (jsonl([chat()] * 9), "invalid_n_examples", "s3://b/k has 9 examples, at least 10 are needed."),
        (
            jsonl([chat()] * 9) + b"x\n",
            "invalid_file_format",
            "s3://b/k: line 10: not JSON: Expecting value at character 1.",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_a_job_that_fails_with_its_code(content: bytes, code: str, told: str) -> None:
    with pytest.raises(StepError) as caught:
        check([content], Data()).require("s3://b/k", param="training_file")
    assert (caught.value.code.name, caught.value.message, caught.value.param) == (code, told, "training_file")


def test_a_file_read_in_part_is_not_refused_for_too_few_rows() -> None:
    found = check([jsonl([chat()] * 1000)], Data(), max_bytes=400)
    assert (found.complete, found.errors) == (False, [])
    assert 0 < found.n_examples < 10
    found.require("f", param="training_file")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "text", "prompt", "completion", "weight", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.lists(json_values, max_size=4), st.sampled_from(["auto", "messages", "prompt_completion", "text", "text_source"])
)
def test_no_json_raises(values: list[Any], form: Any) -> None:
    found = check([jsonl([value]) for value in [{}, *values]], Data(format=form))
    assert found.n_examples + found.n_errors == 1 + len(values)


def test_checking_a_dataset_brings_neither_torch_nor_a_tokenizer() -> None:
    code = "import sys, finetune.data.formats; sys.exit(any(name in sys.modules for name in ('torch', 'tokenizers', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_instruction_row_is_a_question_and_its_answer() -> None:
    row = {
        "instruction": "Sum up",
        "input": "a text",
        "output": "short",
        "system": "Be brief",
        "history": [["Hi", "Hello"]],
    }
    assert first(row).messages == (
        Message("system", "Be brief"),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Sum up\n\na text"),
        Message("assistant", "short"),
    )


def test_conversations_are_read_under_any_of_their_names() -> None:
    turns = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b", "weight": 0},
        {"role": "user", "content": "c"},
    ]
    row = {"system": "S", "conversations": [*turns, {"from": "assistant", "value": "d"}]}
    assert first(row).messages == (
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "b", trained=False),
        Message("user", "c"),
        Message("assistant", "d"),
    )


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"instruction": "a", "output": ""}, '"output" is empty'),
        ({"instruction": "a", "input": 1, "output": "b"}, '"input" must be text, not a number'),
        ({"instruction": "a", "output": "b", "history": "c"}, '"history" must be a list of pairs'),
        ({"conversations": []}, '"conversations" must be a list of messages, not an empty list'),
        ({"conversations": [{"from": "observation", "value": "a"}]}, '"from" must be human, gpt or system'),
        ({"conversations": [{"from": "human", "value": "a"}]}, "must end with an assistant message"),
    ],
)
def test_rows_of_other_tools_are_refused_in_their_own_words(row: Any, says: str) -> None:
    assert says in report(row).errors[0].message
