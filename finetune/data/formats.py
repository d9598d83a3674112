"""What a row of a dataset may look like, and what is wrong with it when it does not: the checks that need no tokenizer.

Rows are read once, in a stream; every kind of error is found in one reading. Standard library and pydantic only: the
service imports this to check a dataset before anything is queued.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.config import MIN_EXAMPLES, Data
from finetune.data.reading import Flaw, Raw, Readable, Source, raw_rows
from finetune.exit_codes import StepError

MAX_LINES_NAMED = 10
"""Line numbers a report names at most."""

ROLES = ("system", "user", "assistant")
NOT_RENDERED = ("tool_calls", "tool_call_id", "function_call", "audio", "reasoning_content", "reasoning", "thinking")
"""Message fields that would be lost silently, hence refused."""

_SURROGATE = re.compile("[\ud800-\udfff]")

Format = Literal["messages", "prompt_completion", "text", "text_source"]


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


@dataclass(frozen=True, slots=True)
class LineError:
    """What is wrong at a line (0: with the file as a whole)."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


@dataclass(frozen=True)
class Report:
    """What a reading of a dataset found.

    Attributes:
        n_examples: Rows that can be used.
        format: Told by the first row if the job says `auto`; None if there was none to tell by.
        errors: At most ten, at least one of each kind, by line.
        n_errors: All of them.
        complete: Whether the whole file was read; if not, `n_examples` is a lower bound.
    """

    n_examples: int
    format: Format | None
    errors: list[LineError]
    n_errors: int
    complete: bool

    def require(self, name: str, *, param: str, minimum: int = MIN_EXAMPLES) -> None:
        """Refuse a dataset that cannot be used.

        Args:
            name: What to call it in the sentence: its uri or file name.
            param: The request field it is about, `training_file` or `validation_file`.
            minimum: Examples needed.
        Raises:
            StepError: `invalid_file_format` with line numbers, or `invalid_n_examples`.
        """
        if self.errors:
            raise StepError(
                "invalid_file_format",
                f"{name}: {self.sentence()}",
                param=param,
                lines=[error.line for error in self.errors],
            )
        if self.n_examples == 0 and self.complete:
            raise StepError("invalid_file_format", f"{name} is empty.", param=param)
        if self.n_examples < minimum and self.complete:
            raise too_few(name, self.n_examples, param=param, minimum=minimum)

    def sentence(self) -> str:
        """The errors in one paragraph."""
        return paragraph(self.errors, self.n_errors)


def paragraph(errors: list[LineError], count: int) -> str:
    """Errors in one sentence: those given, and how many more there are of `count`."""
    more = count - len(errors)
    return "; ".join(map(str, errors)) + (f"; and {more:,} more." if more else "." if errors else "")


def too_few(name: str, n_examples: int, *, param: str, minimum: int = MIN_EXAMPLES) -> StepError:
    """The error for a dataset with fewer examples than needed."""
    have = "1 example" if n_examples == 1 else f"{n_examples} examples"
    return StepError("invalid_n_examples", f"{name} has {have}, at least {minimum} are needed.", param=param)


@dataclass
class Errors:
    """Collects errors without growing: some of each kind, at most ten in the end."""

    count: int = 0
    _kinds: dict[str, list[LineError]] = field(default_factory=dict)

    def add(self, kind: str, error: LineError) -> None:
        """Take one error; `kind` is a word of ours, not of the dataset."""
        self.count += 1
        known = self._kinds.setdefault(kind, [])
        if len(known) < MAX_LINES_NAMED:
            known.append(error)

    def chosen(self) -> list[LineError]:
        """At most ten errors by line: the first of every kind, then the second of every kind, and so on."""
        turns = [
            errors[turn] for turn in range(MAX_LINES_NAMED) for errors in self._kinds.values() if turn < len(errors)
        ]
        return sorted(turns[:MAX_LINES_NAMED], key=lambda error: error.line)

    def sentence(self) -> str:
        """Those chosen, and how many more there are."""
        return paragraph(self.chosen(), self.count)


def check(stream: Readable | Iterable[bytes], data: Data, *, max_bytes: int | None = None) -> Report:
    """Read a dataset and say what is in it. Never raises on its content.

    Args:
        stream: A binary stream or chunks of bytes; gzip is undone.
        data: How the job wants it read.
        max_bytes: Read at most so many (unpacked) bytes; None for all.
    """
    source = Source(stream, max_bytes)
    reader = Reader(data)
    errors = Errors()
    n_examples = 0
    for row in reader.rows(source):
        if isinstance(row, Row):
            n_examples += 1
        else:
            errors.add(row.kind, LineError(row.line, row.message))
    return Report(n_examples, reader.format, errors.chosen(), errors.count, source.complete and source.flaw is None)


def rows(stream: Readable | Iterable[bytes], data: Data) -> Iterator[Row | Flaw]:
    """The examples of a dataset in order, a `Flaw` standing in for each that cannot be used. Never raises on its content."""
    return Reader(data).rows(Source(stream))


class Reader:
    """Reads the rows of one dataset; `format` is known after the first readable row, and then holds for all.

    Args:
        data: How the job wants it read.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self.format: Format | None = None if data.format in ("auto", "preference") else data.format  # type: ignore[assignment]  # narrowed by the test

    def rows(self, source: Source) -> Iterator[Row | Flaw]:
        """Examples and flaws in order. May be called for one file after another."""
        return map(self._read, raw_rows(source))

    def _read(self, raw: Raw | Flaw) -> Row | Flaw:
        if isinstance(raw, Flaw):
            return raw
        try:
            fields = _parse(raw.data)
            if self.format is None:
                self.format = detect(fields)
            return _READERS[self.format](raw.line, fields, self._data)
        except _Refused as refused:
            return Flaw(raw.line, refused.kind, refused.message)


class _Refused(Exception):
    def __init__(self, kind: str, message: str) -> None:
        self.kind, self.message = kind, message
        super().__init__(message)


def detect(fields: dict[str, Any]) -> Format:
    """The format of a row by its fields.

    Raises:
        _Refused: None fits.
    """
    if "messages" in fields:
        return "messages"
    if "prompt" in fields and "completion" in fields:
        return "prompt_completion"
    if "text" in fields:
        return "text_source" if "source" in fields else "text"
    if fields.keys() & {"chosen", "rejected", "preferred_output", "non_preferred_output"}:
        raise _Refused("preference", "this is a preference pair; they are for method dpo, which is not offered yet")
    names = ", ".join(_shown(name[:40]) for name in list(fields)[:6]) or "none"
    raise _Refused(
        "format",
        f'fields are {names}; expected "messages", or "prompt" and "completion", or "text" (with or without "source")',
    )


def _parse(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        raise _Refused(
            "encoding", f"not UTF-8: byte 0x{data[problem.start]:02x} at position {problem.start + 1}"
        ) from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise _Refused("json", f"not JSON: {problem.msg} at character {problem.pos + 1}") from None
    except (ValueError, RecursionError) as problem:
        raise _Refused("json", f"not JSON that can be read: {problem}") from None
    if not isinstance(value, dict):
        raise _Refused("object", f"a JSON object is expected, not {_kind(value)}")
    return value


def _messages(line: int, fields: dict[str, Any], _data: Data) -> Row:
    for name in ("tools", "functions"):
        if fields.get(name):
            raise _Refused("tools", f'"{name}" is not supported yet; leave out rows with tools')
    if "messages" not in fields:
        raise _Refused("messages", '"messages" is missing')
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


_READERS: dict[Format, Callable[[int, dict[str, Any], Data], Row]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "text": _plain,
    "text_source": _text_source,
}


def _conversation(value: Any, name: str, *, ends_with_answer: bool) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _Refused("messages", f'"{name}" must be a list of messages, not {_kind(value)}')
    messages = tuple(_message(item, f"{name}[{index}]") for index, item in enumerate(value))
    if ends_with_answer and messages[-1].role != "assistant":
        raise _Refused("last_role", f'"{name}" must end with an assistant message')
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise _Refused("message", f"{where} must be an object, not {_kind(value)}")
    role = (
        {"developer": "system"}.get(value.get("role", ""), value.get("role"))
        if isinstance(value.get("role", ""), str)
        else None
    )
    if role in ("tool", "function"):
        raise _Refused("tools", f'{where}: role "{role}" is not supported yet; leave out rows with tools')
    if role not in ROLES:
        raise _Refused("role", f'{where}: "role" must be system, user or assistant, not {_shown(value.get("role"))}')
    for name in NOT_RENDERED:
        if value.get(name):
            raise _Refused("tools", f'{where}: "{name}" is not supported yet; leave out such rows')
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
        raise _Refused("content", f'{where}: "content" may hold text parts only')
    if not isinstance(value, str):
        raise _Refused("content", f'{where}: "content" must be text, not {_kind(value)}')
    return _clean(value, f'{where} "content"')


def _weight(value: dict[str, Any], role: str, where: str) -> bool:
    weight = value.get("weight")
    if weight is None:
        return True
    if role != "assistant":
        raise _Refused("weight", f'{where}: "weight" is for assistant messages only')
    if isinstance(weight, bool) or weight not in (0, 1):
        raise _Refused("weight", f'{where}: "weight" must be 0 or 1, not {_shown(weight)}')
    return bool(weight)


def _text(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise _Refused(f"{name} missing", f'"{name}" is missing')
    value = fields[name]
    if not isinstance(value, str):
        raise _Refused(f"{name} text", f'"{name}" must be text, not {_kind(value)}')
    if not value and name != "prompt":
        raise _Refused(f"{name} empty", f'"{name}" is empty')
    return _clean(value, f'"{name}"')


def _clean(text: str, where: str) -> str:
    if "\x00" in text:
        raise _Refused("nul", f"{where} holds a NUL character")
    if _SURROGATE.search(text):
        raise _Refused("surrogate", f"{where} holds half of a surrogate pair, which is no text")
    return text


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
    return "an empty list" if value == [] else names[type(value)]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:60] + "…"
