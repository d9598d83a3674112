"""One row of a dataset: the fields each format has, and the sentence for what is wrong with one.

Pure functions of a row's fields, however they were written down (JSON or CSV). Standard library and pydantic only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from finetune.config import Data

ROLES = ("system", "user", "assistant")
NOT_RENDERED = ("tool_calls", "tool_call_id", "function_call", "audio", "reasoning_content", "reasoning", "thinking")
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

_SURROGATE = re.compile("[\ud800-\udfff]")

Format = Literal["messages", "prompt_completion", "text", "text_source", "instruction", "conversations"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `trained`: whether it may carry loss; only meaningful for the assistant's."""

    role: str
    content: str
    trained: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One example: either `messages`, or `prompt` + `text` (prompt is empty for plain text).

    `line` is 1-based in its file. `text` is what is learned: the completion, or the whole text.
    """

    line: int
    messages: tuple[Message, ...] = ()
    prompt: str = ""
    text: str = ""

    def texts(self) -> Iterator[str]:
        """Every piece of user text in it."""
        return (piece for piece in (*(message.content for message in self.messages), self.prompt, self.text) if piece)


class Refused(Exception):
    """What is wrong with a row. kind: a word of ours that groups equal mistakes; message: what a user reads."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind, self.message = kind, message
        super().__init__(message)


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
        raise Refused("preference", "this is a preference pair; they are for method dpo, which is not offered yet")
    names = ", ".join(_shown(name[:40]) for name in list(fields)[:6]) or "none"
    raise Refused(
        "format",
        f'fields are {names}; expected "messages", or "prompt" and "completion", or "text" (with or without "source"), '
        'or "instruction" and "output" (with or without "input"), or "conversations"',
    )


def _messages(line: int, fields: dict[str, Any], _data: Data) -> Row:
    for name in ("tools", "functions"):
        if fields.get(name):
            raise Refused("tools", f'"{name}" is not supported yet; leave out rows with tools')
    if "messages" not in fields:
        raise Refused("messages", '"messages" is missing')
    return Row(line, messages=_conversation(fields["messages"], "messages", ends_with_answer=True))


def _prompt_completion(line: int, fields: dict[str, Any], data: Data) -> Row:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        asked = _conversation(prompt, "prompt", ends_with_answer=False)
        answered = _conversation(completion, "completion", ends_with_answer=True)
        everything = data.train_on == "all"
        return Row(
            line, messages=(*(Message(turn.role, turn.content, trained=everything) for turn in asked), *answered)
        )
    return Row(line, prompt=_text(fields, "prompt"), text=_text(fields, "completion"))


def _plain(line: int, fields: dict[str, Any], _data: Data) -> Row:
    return Row(line, text=_text(fields, "text"))


def _text_source(line: int, fields: dict[str, Any], data: Data) -> Row:
    values = {"text": _text(fields, "text"), "source": _text(fields, "source")}
    return Row(line, text=re.sub(r"\{(text|source)\}", lambda match: values[match[1]], data.text_template))


def _instruction(line: int, fields: dict[str, Any], _data: Data) -> Row:
    """{instruction, input, output}, also with `system` and `history` (earlier pairs of question and answer)."""
    asked, given = _text(fields, "instruction"), fields.get("input")
    if given is not None and not isinstance(given, str):
        raise Refused("input text", f'"input" must be text, not {kind_of(given)}')
    if given:
        asked = asked + "\n\n" + _clean(given, '"input"')
    turns = [*_system(fields), *_history(fields.get("history"))]
    return Row(line, messages=(*turns, Message("user", asked), Message("assistant", _text(fields, "output"))))


def _system(fields: dict[str, Any]) -> list[Message]:
    return [Message("system", _text(fields, "system"))] if fields.get("system") else []


def _history(value: Any) -> list[Message]:
    if not value:
        return []
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in value
    ):
        raise Refused("history", '"history" must be a list of pairs of texts: question and answer')
    texts = [(_clean(asked, '"history"'), _clean(answer, '"history"')) for asked, answer in value]
    return [Message(role, text) for pair in texts for role, text in zip(("user", "assistant"), pair, strict=True)]


def _conversations(line: int, fields: dict[str, Any], _data: Data) -> Row:
    """{conversations: [{from, value}, …]}; turns with `role` and `content` are read as messages."""
    value = fields.get("conversations")
    if fields.get("tools"):
        raise Refused("tools", '"tools" is not supported yet; leave out rows with tools')
    if isinstance(value, list):
        value = [_spoken(turn, f"conversations[{index}]") for index, turn in enumerate(value)]
    turns = _conversation(value, "conversations", ends_with_answer=True)
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
            "role", f'{where}: "from" must be {known}, not {_shown(speaker)}; rows with tools are not read yet'
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


def _conversation(value: Any, name: str, *, ends_with_answer: bool) -> tuple[Message, ...]:
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
    if role in ("tool", "function"):
        raise Refused("tools", f'{where}: role "{role}" is not supported yet; leave out rows with tools')
    if role not in ROLES:
        raise Refused("role", f'{where}: "role" must be system, user or assistant, not {_shown(value.get("role"))}')
    for name in NOT_RENDERED:
        if value.get(name):
            raise Refused("tools", f'{where}: "{name}" is not supported yet; leave out such rows')
    return Message(role, _content(value.get("content"), where), trained=_weight(value, role, where))


def _content(value: Any, where: str) -> str:
    if (
        isinstance(value, list)
        and value
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in value
        )
    ):
        return _clean("".join(part["text"] for part in value), f'{where} "content"')
    if isinstance(value, list):
        raise Refused("content", f'{where}: "content" may hold text parts only')
    if not isinstance(value, str):
        raise Refused("content", f'{where}: "content" must be text, not {kind_of(value)}')
    return _clean(value, f'{where} "content"')


def _weight(value: dict[str, Any], role: str, where: str) -> bool:
    weight = value.get("weight")
    if weight is None:
        return True
    if role != "assistant":
        raise Refused("weight", f'{where}: "weight" is for assistant messages only')
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Refused("weight", f'{where}: "weight" must be 0 or 1, not {_shown(weight)}')
    return bool(weight)


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise Refused(f"{name} missing", f'"{name}" is missing')
    value = fields[name]
    if not isinstance(value, str):
        raise Refused(f"{name} text", f'"{name}" must be text, not {kind_of(value)}')
    if not value and name != "prompt":
        raise Refused(f"{name} empty", f'"{name}" is empty')
    return _clean(value, f'"{name}"')


def _clean(text: str, where: str) -> str:
    if "\x00" in text:
        raise Refused("nul", f"{where} holds a NUL character")
    if _SURROGATE.search(text):
        raise Refused("surrogate", f"{where} holds half of a surrogate pair, which is no text")
    return text


def kind_of(value: Any) -> str:
    """What a JSON value is, in a user's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
    return "an empty list" if value == [] else names[type(value)]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:60] + "…"
