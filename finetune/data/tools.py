"""Tools in a row of messages: what may be called, and the calls, in OpenAI's shape.

A call's arguments come as a text of JSON; chat templates take them as an object, so that is what they become here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from finetune.data.refusal import Refused, clean, kind_of, shown


def definitions(value: Any) -> tuple[dict[str, Any], ...]:
    """The tools of a row.

    Args:
        value: Its `tools`; None or an empty list for none.
    Raises:
        Refused: It is no list of functions.
    """
    if not value:
        return ()
    if not isinstance(value, list):
        raise Refused("tools", f'"tools" must be a list, not {kind_of(value)}')
    for index, tool in enumerate(value):
        _function(tool, f"tools[{index}]")
        _checked(tool, f"tools[{index}]")
    return tuple(value)


def calls(message: dict[str, Any], role: str, where: str) -> tuple[dict[str, Any], ...]:
    """The calls of a turn, their arguments as objects.

    Raises:
        Refused: They are no calls, or not the assistant's.
    """
    if message.get("function_call"):
        raise Refused("tools", f'{where}: "function_call" is the older spelling and is not read; use "tool_calls"')
    given = message.get("tool_calls")
    if not given:
        return ()
    if role != "assistant":
        raise Refused("tools", f'{where}: "tool_calls" is for assistant messages only')
    if not isinstance(given, list):
        raise Refused("tools", f'{where} "tool_calls" must be a list, not {kind_of(given)}')
    return tuple(_call(call, f"{where} tool_calls[{index}]") for index, call in enumerate(given))


def label(message: dict[str, Any], key: str, where: str) -> str:
    """A short text of a turn that need not be there."""
    value = message.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused("tools", f'{where}: "{key}" must be text, not {kind_of(value)}')
    return clean(value, f'{where} "{key}"')


def texts(value: Any) -> Iterator[str]:
    """Every text inside a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (str(key), *texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = _function(call, where)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise Refused("arguments", f'{where}: "arguments" is no JSON: {shown(arguments)}') from None
    if not isinstance(arguments, dict):
        raise Refused("arguments", f'{where}: "arguments" must be a JSON object, not {kind_of(arguments)}')
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    _checked(made, where)
    id_ = label(call, "id", where)
    return {"id": id_} | made if id_ else made


def _function(value: Any, where: str) -> dict[str, Any]:
    """The function inside a tool or a call."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type", "function") != "function":
        raise Refused("tools", f'{where} must be {{"type": "function", "function": {{"name": …}}}}, not {shown(value)}')
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise Refused("tools", f'{where}: its function has no "name"')
    return function


def _checked(value: Any, where: str) -> None:
    for text in texts(value):
        clean(text, where)
