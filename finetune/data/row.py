"""One row of a dataset: the fields each format has, and the sentence for what is wrong with one.

Pure functions of a row's fields, however they were written down (JSON or CSV). Standard library and pydantic only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune.config import Data
from finetune.data import tools
from finetune.data.refusal import Refused, clean, kind_of, shown

ROLES = ("system", "user", "assistant", "tool")
NOT_RENDERED = ("audio", "reasoning_content", "reasoning", "thinking")
"""Message fields that would be lost silently, hence refused."""

SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}
"""Names that `conversations` rows give to who speaks, and the roles they stand for."""

Format = Literal["messages", "prompt_completion", "text", "text_source", "instruction", "conversations", "preference"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: system, user, assistant or tool.
        content: Its text; empty if it only calls tools.
        trained: Whether it may carry loss; only meaningful for the assistant's.
        tool_calls: The assistant's calls, as templates take them: arguments are an object.
        tool_call_id: Of a tool's answer: the call it answers, if the row says so.
        name: Of a tool's answer: the tool, if the row says so.
    """

    role: str
    content: str
    trained: bool = True
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def as_json(self) -> dict[str, Any]:
        """The turn as a chat template sees it."""
        given = {"tool_call_id": self.tool_call_id, "name": self.name, "tool_calls": list(self.tool_calls)}
        return {"role": self.role, "content": self.content} | {key: value for key, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class Row:
    """One example: either `messages`, or `prompt` + `text` (prompt is empty for plain text).

    `line` is 1-based in its file. `text` is what is learned: the completion, or the whole text. `tools` are those the
    messages may call.
    """

    line: int
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()

    def texts(self) -> Iterator[str]:
        """Every piece of user text in it."""
        for message in self.messages:
            yield from (message.content, message.name, message.tool_call_id, *tools.texts(list(message.tool_calls)))
        yield from (self.prompt, self.text, *tools.texts(list(self.tools)))


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: two rows that begin alike and end with different answers, of which only those are learned."""

    line: int
    chosen: Row
    rejected: Row

    def texts(self) -> Iterator[str]:
        """Every piece of user text in it."""
        yield from self.chosen.texts()
        yield from self.rejected.texts()


def detect(fields: dict[str, Any]) -> Format:
    """The format of a row by its fields.

    Raises:
        Refused: None fits.
    """
    if "messages" in fields:
        return "messages"
    if "prompt" in fields and "completion" in fields:
        return "prompt_completion"
    if "conversations" in fields:
        return "conversations"
    if "instruction" in fields and "output" in fields:
        return "instruction"
    if "text" in fields:
        return "text_source" if "source" in fields else "text"
    if fields.keys() & {"chosen", "rejected", "preferred_output", "non_preferred_output"}:
        raise Refused("preference", "this is a preference pair; such rows are for method dpo")
    names = ", ".join(shown(name[:40]) for name in list(fields)[:6]) or "none"
    raise Refused(
        "format",
        f'fields are {names}; expected "messages", or "prompt" and "completion", or "text" (with or without "source"), '
        'or "instruction" and "output" (with or without "input"), or "conversations"',
    )


def _messages(line: int, fields: dict[str, Any], _data: Data) -> Row:
    if fields.get("functions"):
        raise Refused("tools", '"functions" is the older spelling and is not read; use "tools"')
    if "messages" not in fields:
        raise Refused("messages", '"messages" is missing')
    turns = conversation(fields["messages"], "messages", ends_with_answer=True)
    return Row(line, messages=turns, tools=tools.definitions(fields.get("tools")))


def _prompt_completion(line: int, fields: dict[str, Any], data: Data) -> Row:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        asked = conversation(prompt, "prompt", ends_with_answer=False)
        answered = conversation(completion, "completion", ends_with_answer=True)
        everything = data.train_on == "all"
        turns = (*(replace(turn, trained=everything) for turn in asked), *answered)
        return Row(line, messages=turns, tools=tools.definitions(fields.get("tools")))
    return Row(line, prompt=text_field(fields, "prompt"), text=text_field(fields, "completion"))


def _plain(line: int, fields: dict[str, Any], _data: Data) -> Row:
    return Row(line, text=text_field(fields, "text"))


def _text_source(line: int, fields: dict[str, Any], data: Data) -> Row:
    values = {"text": text_field(fields, "text"), "source": text_field(fields, "source")}
    return Row(line, text=re.sub(r"\{(text|source)\}", lambda match: values[match[1]], data.text_template))


def _instruction(line: int, fields: dict[str, Any], _data: Data) -> Row:
    """{instruction, input, output}, also with `system` and `history` (earlier pairs of question and answer)."""
    asked, given = text_field(fields, "instruction"), fields.get("input")
    if given is not None and not isinstance(given, str):
        raise Refused("input text", f'"input" must be text, not {kind_of(given)}')
    if given:
        asked = asked + "\n\n" + clean(given, '"input"')
    turns = [*_system(fields), *_history(fields.get("history"))]
    return Row(line, messages=(*turns, Message("user", asked), Message("assistant", text_field(fields, "output"))))


def _system(fields: dict[str, Any]) -> list[Message]:
    return [Message("system", text_field(fields, "system"))] if fields.get("system") else []


def _history(value: Any) -> list[Message]:
    if not value:
        return []
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    ):
        raise Refused("history", '"history" must be a list of pairs of texts: question and answer')
    texts = [(clean(asked, '"history"'), clean(answer, '"history"')) for asked, answer in value]
    return [Message(role, text) for pair in texts for role, text in zip(("user", "assistant"), pair, strict=True)]


def _conversations(line: int, fields: dict[str, Any], _data: Data) -> Row:
    """{conversations: [{from, value}, …]}; turns with `role` and `content` are read as messages."""
    value = fields.get("conversations")
    if fields.get("tools"):
        raise Refused("tools", '"tools" is read in rows of messages only')
    if isinstance(value, list):
        value = [_spoken(turn, f"conversations[{index}]") for index, turn in enumerate(value)]
    turns = conversation(value, "conversations", ends_with_answer=True)
    return Row(line, messages=(*(_system(fields) if turns[0].role != "system" else ()), *turns))


def _spoken(turn: Any, where: str) -> Any:
    """A turn as a message."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    speaker = turn["from"]
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        known = "human, gpt or system"
        raise Refused(
            "role",
            f'{where}: "from" must be {known}, not {shown(speaker)}; calls of tools are read in rows of messages only',
        )
    return {"role": role, "content": turn.get("value")} | {key: turn[key] for key in ("weight",) if key in turn}


READERS: dict[Format, Callable[[int, dict[str, Any], Data], Row]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "text": _plain,
    "text_source": _text_source,
    "instruction": _instruction,
    "conversations": _conversations,
}
"""Of every format but preference pairs, which `preference.py` reads."""


def conversation(value: Any, name: str, *, ends_with_answer: bool) -> tuple[Message, ...]:
    """The turns of a list of messages.

    Raises:
        Refused: It is none, or does not end with an answer where it has to.
    """
    if not isinstance(value, list) or not value:
        raise Refused("messages", f'"{name}" must be a list of messages, not {kind_of(value)}')
    messages = tuple(_message(item, f"{name}[{index}]") for index, item in enumerate(value))
    if ends_with_answer and messages[-1].role != "assistant":
        raise Refused("last_role", f'"{name}" must end with an assistant message')
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise Refused("message", f"{where} must be an object, not {kind_of(value)}")
    role = (
        {"developer": "system"}.get(value.get("role", ""), value.get("role"))
        if isinstance(value.get("role", ""), str)
        else None
    )
    if role not in ROLES:
        raise Refused(
            "role", f'{where}: "role" must be system, user, assistant or tool, not {shown(value.get("role"))}'
        )
    for name in NOT_RENDERED:
        if value.get(name):
            raise Refused("lost", f'{where}: "{name}" is not supported; leave out such rows')
    calls = tools.calls(value, role, where)
    content = "" if calls and value.get("content") is None else _content(value.get("content"), where)
    id_, name = (tools.label(value, key, where) if role == "tool" else "" for key in ("tool_call_id", "name"))
    return Message(role, content, _weight(value, role, where), calls, id_, name)


def _content(value: Any, where: str) -> str:
    if (
        isinstance(value, list)
        and value
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in value
        )
    ):
        return clean("".join(part["text"] for part in value), f'{where} "content"')
    if isinstance(value, list):
        raise Refused("content", f'{where}: "content" may hold text parts only')
    if not isinstance(value, str):
        raise Refused("content", f'{where}: "content" must be text, not {kind_of(value)}')
    return clean(value, f'{where} "content"')


def _weight(value: dict[str, Any], role: str, where: str) -> bool:
    weight = value.get("weight")
    if weight is None:
        return True
    if role != "assistant":
        raise Refused("weight", f'{where}: "weight" is for assistant messages only')
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Refused("weight", f'{where}: "weight" must be 0 or 1, not {shown(weight)}')
    return bool(weight)


def text_field(fields: dict[str, Any], name: str) -> str:
    """A field that must be text; only `prompt` may be empty.

    Raises:
        Refused: It is missing, no text, or empty.
    """
    if name not in fields:
        raise Refused(f"{name} missing", f'"{name}" is missing')
    value = fields[name]
    if not isinstance(value, str):
        raise Refused(f"{name} text", f'"{name}" must be text, not {kind_of(value)}')
    if not value and name != "prompt":
        raise Refused(f"{name} empty", f'"{name}" is empty')
    return clean(value, f'"{name}"')
