"""CSV with a header whose columns are those of a known format: told by its first line, read in a stream.

Commas, semicolons (as spreadsheets write in much of Europe and Brazil) and tabs; quoted cells may hold line breaks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass

COLUMNS = ({"text"}, {"prompt", "completion"}, {"instruction", "output"}, {"prompt", "chosen", "rejected"})
"""A first line that names all of one set is a header."""

DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Layout:
    """The header's names, and what stands between cells."""

    names: tuple[str, ...]
    delimiter: str


@dataclass(frozen=True)
class Cells:
    """A row and the line of the file (1-based) on which it begins."""

    line: int
    fields: dict[str, str]


@dataclass(frozen=True)
class Wrong:
    """What is wrong at a line; `kind` groups equal mistakes."""

    line: int
    kind: str
    message: str


def layout(head: bytes) -> Layout | None:
    """How a table is laid out, by its first line; None if that is no header of a known format.

    Args:
        head: The file's beginning, with its first line whole.
    """
    first = head.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    for delimiter in DELIMITERS:
        try:
            names = tuple(name.strip() for name in next(csv.reader([first], delimiter=delimiter, strict=True), []))
        except csv.Error:
            continue
        if any(columns <= set(names) for columns in COLUMNS):
            return Layout(names, delimiter)
    return None


def rows(layout: Layout, chunks: Iterator[bytes], longest: int) -> Iterator[Cells | Wrong]:
    """The rows under the header, and what is wrong between them.

    Args:
        layout: As told by the first line.
        chunks: The whole file.
        longest: Bytes a line or cell may have; a longer one ends the reading, for nobody knows what it holds.
    """
    if repeated := sorted({name for name in layout.names if layout.names.count(name) > 1}):
        yield Wrong(1, "header", f"the header names {', '.join(map(repr, repeated))} more than once")
        return
    lines = _Lines(chunks, longest)
    csv.field_size_limit(longest)
    reader = csv.reader(lines, delimiter=layout.delimiter, strict=True)
    next(reader)
    while True:
        begun = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            yield from lines.wrong()
            yield Wrong(begun, "csv", f"no CSV row: {problem}")
            if "field limit" in str(problem):
                return
            continue
        yield from lines.wrong()
        if cells is None:
            return
        if len(cells) == len(layout.names):
            yield Cells(begun, dict(zip(layout.names, cells, strict=True)))
        elif cells:
            yield Wrong(begun, "cells", f"{len(cells)} cells, where the header names {len(layout.names)}")


class _Lines:
    """The lines of a file as text; what is wrong with them is kept for the caller."""

    def __init__(self, chunks: Iterator[bytes], longest: int) -> None:
        self._lines = _split(chunks, longest)
        self._longest = longest
        self._number = 0
        self._wrong: list[Wrong] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        if len(line) > self._longest:
            self._wrong.append(Wrong(self._number, "long_row", f"the row is longer than {self._longest:,} bytes"))
            raise StopIteration
        try:
            return line.decode()
        except UnicodeDecodeError as problem:
            message = f"not UTF-8: byte 0x{line[problem.start]:02x} at position {problem.start + 1}"
            self._wrong.append(Wrong(self._number, "encoding", message))
            return line.decode("utf-8", "replace")

    def wrong(self) -> list[Wrong]:
        """What was found since the last call."""
        found, self._wrong = self._wrong, []
        return found


def _split(chunks: Iterator[bytes], longest: int) -> Iterator[bytes]:
    """Lines with their ends; of one that is too long only so much that it shows."""
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        pieces = _by_newline(chunk)
        for piece in pieces:
            if size <= longest:
                held.append(piece)
            size += len(piece)
            if piece.endswith(b"\n"):
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)


def _by_newline(chunk: bytes) -> list[bytes]:
    return [piece + b"\n" for piece in chunk.split(b"\n")[:-1]] + (
        [tail] if (tail := chunk.rpartition(b"\n")[2]) else []
    )
