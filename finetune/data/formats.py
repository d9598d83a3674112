"""What a row of a dataset may look like, and what is wrong with it when it does not: the checks that need no tokenizer.

Rows are read once, in a stream; every kind of error is found in one reading. Standard library and pydantic only: the
service imports this to check a dataset before anything is queued.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from finetune.config import MIN_EXAMPLES, Data
from finetune.data import preference
from finetune.data.reading import Flaw, Raw, Readable, Source, raw_rows
from finetune.data.refusal import Refused, kind_of
from finetune.data.row import READERS, Format, Pair, Row, detect
from finetune.exit_codes import StepError

MAX_LINES_NAMED = 10
"""Line numbers a report names at most."""

MAX_DEPTH = 64
"""How deep definitions of tools and arguments of calls may be nested."""
DEEP = f"objects and lists are nested more than {MAX_DEPTH} levels deep"


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
        stream: A binary stream or chunks of bytes; gzip and zstd are undone.
        data: How the job wants it read.
        max_bytes: Read at most so many (unpacked) bytes; None for all.
    """
    source = Source(stream, max_bytes)
    reader = Reader(data)
    errors = Errors()
    n_examples = 0
    for row in reader.rows(source):
        if isinstance(row, Row | Pair):
            n_examples += 1
        else:
            errors.add(row.kind, LineError(row.line, row.message))
    return Report(n_examples, reader.format, errors.chosen(), errors.count, source.complete and source.flaw is None)


def rows(stream: Readable | Iterable[bytes], data: Data) -> Iterator[Row | Pair | Flaw]:
    """The examples of a dataset in order, a `Flaw` standing in for each that cannot be used. Never raises on its content."""
    return Reader(data).rows(Source(stream))


def told(streams: Iterable[Readable], data: Data) -> Data:
    """`data` with the format that the first readable row of a dataset's files tells; unchanged if none does."""
    reader = Reader(data)
    for stream in streams:
        for _ in reader.rows(Source(stream)):
            if reader.format is not None:
                return data.model_copy(update={"format": reader.format})
    return data


class Reader:
    """Reads the rows of one dataset; `format` is known after the first readable row, and then holds for all.

    Args:
        data: How the job wants it read.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self.format: Format | None = None if data.format == "auto" else data.format

    def rows(self, source: Source, only: Container[int] | None = None) -> Iterator[Row | Pair | Flaw]:
        """Examples and flaws in order. May be called for one file after another.

        Args:
            source: The dataset.
            only: Lines to read; the others are passed over.
        """
        return (self._read(raw) for raw in raw_rows(source) if only is None or raw.line in only)

    def _read(self, raw: Raw | Flaw) -> Row | Pair | Flaw:
        if isinstance(raw, Flaw):
            return raw
        try:
            fields = raw.fields if raw.fields is not None else _parse(raw.data)
            if self.format is None:
                self.format = detect(fields)
            read = preference.read if self.format == "preference" else READERS[self.format]
            return _shallow(read(raw.line, fields, self._data))
        except Refused as refused:
            return Flaw(raw.line, refused.kind, refused.message)
        except RecursionError:
            return Flaw(raw.line, "deep", DEEP)


def _shallow(found: Row | Pair) -> Row | Pair:
    """The row, if its tools and calls are no deeper than a template can be asked to go."""
    for row in (found.chosen, found.rejected) if isinstance(found, Pair) else (found,):
        level: list[Any] = [*row.tools, *(call for message in row.messages for call in message.tool_calls)]
        for _ in range(MAX_DEPTH):
            if not level:
                break
            level = [
                inner
                for value in level
                if isinstance(value, dict | list)
                for inner in (value.values() if isinstance(value, dict) else value)
            ]
        if level:
            raise Refused("deep", DEEP)
    return found


def _parse(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError as problem:
        raise Refused(
            "encoding", f"not UTF-8: byte 0x{data[problem.start]:02x} at position {problem.start + 1}"
        ) from None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise Refused("json", f"not JSON: {problem.msg} at character {problem.pos + 1}") from None
    except (ValueError, RecursionError) as problem:
        raise Refused("json", f"not JSON that can be read: {problem}") from None
    if not isinstance(value, dict):
        raise Refused("object", f"a JSON object is expected, not {kind_of(value)}")
    return value
