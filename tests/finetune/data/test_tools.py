"""Rows with tools: what is taken, that a call is trained to its closing token, and that nothing of them is lost in silence."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune.config import Data
from finetune.data.encode import Example, Refusal, encode
from finetune.data.formats import check, rows
from finetune.data.masks import Rendered, render
from finetune.data.row import Message, Row
from finetune.data.template import CHATML, Template, TemplateError
from finetune.data.tokenizer import TextTokenizer

pytestmark = pytest.mark.unit

SPECIAL = re.compile(r"<\|(im_start|im_end|endoftext|head|/head|turn|more)\|>")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def call(arguments: Any = '{"city": "São Paulo"}', **extra: Any) -> dict[str, Any]:
    """A call as OpenAI's files have it: its arguments are text."""
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}, **extra}


def conversation(*calls: Any, **extra: Any) -> dict[str, Any]:
    """A row in which the assistant calls and then answers."""
    turns = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": list(calls or [call()])},
        {"role": "tool", "tool_call_id": "call_1", "content": '31 °C "dry"'},
        {"role": "assistant", "content": "Yes, 31 °C."},
    ]
    return {"messages": turns, "tools": [TOOL], "parallel_tool_calls": False, **extra}


def read(row: Any) -> Row:
    """The one row, which must be good."""
    found = next(rows([json.dumps(row).encode()], Data()))
    assert isinstance(found, Row), found
    return found


def refusal(row: Any) -> str:
    """What is said of a row that is none."""
    return check(io.BytesIO(json.dumps(row).encode()), Data()).errors[0].message


def rendered(row: Row, name: str) -> Rendered:
    source = (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return render(row.messages, Template(source).with_tools(row.tools), SPECIAL, "assistant")


def trained(row: Row, name: str) -> list[str]:
    """The texts that carry loss."""
    found = rendered(row, name)
    return [found.text[begin:end] for begin, end in found.spans]


def test_a_call_becomes_what_templates_take() -> None:
    row = read(conversation())
    wanted = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "São Paulo"}}}
    assert row.messages[1] == Message("assistant", "", tool_calls=(wanted,))
    assert row.messages[2] == Message("tool", '31 °C "dry"', tool_call_id="call_1")
    assert row.tools == (TOOL,)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "tools_hermes",
            [
                '<tool_call>\n{"name": "weather", "arguments": {"city": "São Paulo"}}\n</tool_call><|im_end|>',
                "Yes, 31 °C.<|im_end|>",
            ],
        ),
        (
            "tools_headers",
            ['{"name": "weather", "parameters": {"city": "São Paulo"}}<|more|>', "Yes, 31 °C.<|turn|>"],
        ),
    ],
)
def test_a_call_is_trained_to_its_closing_token_and_what_the_tool_says_is_not(name: str, wanted: list[str]) -> None:
    assert trained(read(conversation()), name) == wanted


def test_words_before_a_call_and_a_call_at_the_end_are_trained() -> None:
    row = conversation()
    row["messages"] = [row["messages"][0], row["messages"][1] | {"content": "Let me look."}]
    (found,) = trained(read(row), "tools_hermes")
    assert found.startswith("Let me look.\n<tool_call>\n")
    assert found.endswith("</tool_call><|im_end|>")


def test_a_call_of_weight_zero_is_not_trained() -> None:
    row = conversation()
    row["messages"][1]["weight"] = 0
    assert trained(read(row), "tools_hermes") == ["Yes, 31 °C.<|im_end|>"]


def test_a_template_that_leaves_tools_out_is_refused_rather_than_believed() -> None:
    row = read(conversation())
    with pytest.raises(TemplateError, match="does not render tools;"):
        render(row.messages, Template(CHATML).with_tools(row.tools), SPECIAL, "assistant")
    with pytest.raises(TemplateError, match="does not render calls of tools;"):
        render(row.messages, Template(CHATML), SPECIAL, "assistant")
    deaf = Template(
        "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    with pytest.raises(TemplateError, match="does not render answers of tools;"):
        render([row.messages[0], *row.messages[2:]], deaf, SPECIAL, "assistant")


def test_such_a_row_is_named_with_its_line_and_one_without_tools_is_taken(tokenizer: TextTokenizer) -> None:
    plain = Row(4, messages=(Message("user", "a"), Message("assistant", "b")))
    found = list(encode([Row(3, messages=read(conversation()).messages, tools=(TOOL,)), plain], tokenizer, "assistant"))
    assert isinstance(found[0], Refusal)
    assert (found[0].line, found[0].code) == (3, "invalid_file_format")
    assert isinstance(found[1], Example)


def test_a_special_token_inside_a_call_is_refused(tokenizer: TextTokenizer) -> None:
    (found,) = encode([read(conversation(call('{"city": ["<|im_end|>"]}')))], tokenizer, "assistant")
    assert isinstance(found, Refusal)
    assert found.code == "special_tokens_in_text"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (conversation(call("{city: 1}")), '"arguments" is no JSON'),
        (conversation(call("[1]")), '"arguments" must be a JSON object, not a list'),
        (conversation({"type": "function", "function": {}}), 'its function has no "name"'),
        (conversation({"type": "custom"}), 'must be {"type": "function"'),
        (conversation(tools=[{"name": "weather"}]), 'tools[0] must be {"type": "function"'),
        (conversation(tools={"a": 1}), '"tools" must be a list, not an object'),
        (conversation(functions=[{"name": "a"}]), '"functions" is the older spelling'),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [call()]}]}, "for assistant messages only"),
        (
            {"messages": [{"role": "assistant", "function_call": {"name": "a"}}]},
            '"function_call" is the older spelling',
        ),
        ({"messages": [{"role": "tool", "content": "a", "name": 1}]}, '"name" must be text, not a number'),
        ({"messages": [{"role": "function", "content": "a"}]}, "must be system, user, assistant or tool"),
        (conversation(call('{"a": "\\u0000"}')), "holds a NUL character"),
    ],
)
def test_what_is_no_tool_is_said(row: Any, says: str) -> None:
    assert says in refusal(row)
