"""From the bytes of a dataset to its rows, still unparsed: gzip, zstd, JSON Lines, JSON arrays and CSV, within limits.

Streams: at most one row is held. Hostile bytes become `Flaw`s, never exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from finetune.data import table
from finetune.data.unpack import PACKINGS, Damaged, Unpacker, unpacked

MAX_ROW_BYTES = 10_000_000
"""A longer row is named, not read."""

CHUNK_BYTES = 1 << 20
HEADER_BYTES = 1 << 16
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "the file is a zip archive; unpack it, or compress it with gzip or zstd"),
    (b"PAR1", "the file is Parquet; write it as JSON Lines"),
    (b"\xff\xfe", "the file is UTF-16; write it as UTF-8"),
    (b"\xfe\xff", "the file is UTF-16; write it as UTF-8"),
)
_STRUCTURE = re.compile(rb'["\[\]{},\n]')
_IN_STRING = re.compile(rb'["\\\n]')


class Readable(Protocol):
    """A binary stream: a file, an S3 body, an upload."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Raw:
    """One row's bytes and the line (1-based) on which it begins; of a CSV row its fields instead."""

    line: int
    data: bytes
    fields: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong at a line (1-based; 0: with the whole file). `kind` groups flaws of one sort."""

    line: int
    kind: str
    message: str


class Source:
    """A dataset as chunks of plain bytes, gzip and zstd undone.

    Args:
        stream: A binary stream, or chunks of bytes (lines will do).
        max_bytes: Stop after so many unpacked bytes; None for no limit.
    Attributes:
        complete: After iteration: whether all of it was read.
        flaw: After iteration: why reading stopped, if it could not go on.
    """

    def __init__(self, stream: Readable | Iterable[bytes], max_bytes: int | None = None) -> None:
        self._stream = stream
        self._left = max_bytes
        self.complete = True
        self.flaw: Flaw | None = None

    def __iter__(self) -> Iterator[bytes]:
        """The chunks, at most `max_bytes` together."""
        for chunk in self._plain():
            if self._left is not None and len(chunk) > self._left:
                self.complete = False
                yield chunk[: self._left]
                return
            if self._left is not None:
                self._left -= len(chunk)
            yield chunk

    def _plain(self) -> Iterator[bytes]:
        head, chunks = _begun(_chunks(self._stream))
        packed = next(((make, name) for magic, make, name in PACKINGS if head.startswith(magic)), None)
        head, chunks = _begun(self._unpacked(*packed, chunks)) if packed else (head, chunks)
        for magic, sentence in _FOREIGN:
            if head.startswith(magic):
                self.flaw = Flaw(0, "foreign", sentence)
                return
        first = next(chunks, b"")
        yield from _prepend(first.removeprefix(b"\xef\xbb\xbf"), chunks)

    def _unpacked(self, unpacker: Callable[[], Unpacker], name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from unpacked(unpacker, name, chunks)
        except Damaged as problem:
            self.flaw = Flaw(0, name, str(problem))


def raw_rows(source: Source) -> Iterator[Raw | Flaw]:
    """The rows of a dataset: lines of JSON Lines, elements of one JSON array, or rows of CSV under a header.

    Which of them is told by the first character, and by a first line that names known columns. Empty lines are passed over. A row cut off by the source's byte limit
    is left out.

    Args:
        source: The dataset.
    Returns:
        Rows and flaws in order; the source's own flaw last.
    """
    chunks = _skip_blank(iter(source))
    lines_before, first = next(chunks, (0, b""))
    rest: Iterator[bytes] = (chunk for _, chunk in chunks)
    if first[:1] not in (b"[", b"{"):
        first = _first_line(first, rest)
    rest = _prepend(first, rest)
    if first.startswith(b"["):
        yield from _elements(rest, source, 1 + lines_before)
    elif (layout := table.layout(first)) is not None:
        yield from _table(layout, rest, source, 1 + lines_before)
    else:
        yield from _lines(rest, source, 1 + lines_before)
    if source.flaw is not None:
        yield source.flaw


def _lines(chunks: Iterator[bytes], source: Source, line: int) -> Iterator[Raw | Flaw]:
    held: list[bytes] = []
    size = 0
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        for index, piece in enumerate(pieces):
            size += len(piece)
            if size <= MAX_ROW_BYTES:
                held.append(piece)
            if index < len(pieces) - 1:
                yield from _row(line, held, size)
                held, size, line = [], 0, line + 1
    if source.complete and source.flaw is None:
        yield from _row(line, held, size)
    elif size > MAX_ROW_BYTES:
        yield _too_long(line)


def _row(line: int, held: list[bytes], size: int) -> Iterator[Raw | Flaw]:
    if size > MAX_ROW_BYTES:
        yield _too_long(line)
    elif data := b"".join(held).strip():
        yield Raw(line, data)


def _too_long(line: int) -> Flaw:
    return Flaw(line, "long_row", f"the row is longer than {MAX_ROW_BYTES:,} bytes")


def _table(layout: table.Layout, chunks: Iterator[bytes], source: Source, line: int) -> Iterator[Raw | Flaw]:
    """Rows of CSV. The last one is only known to be whole if the source was read to its end."""
    held: Raw | Flaw | None = None
    for found in table.rows(layout, chunks, MAX_ROW_BYTES):
        if held is not None:
            yield held
        at = line + found.line - 1
        held = Flaw(at, found.kind, found.message) if isinstance(found, table.Wrong) else Raw(at, b"", found.fields)
    if held is not None and source.complete and source.flaw is None:
        yield held


def _elements(chunks: Iterator[bytes], source: Source, line: int) -> Iterator[Raw | Flaw]:
    """Elements of a JSON array, found by counting brackets outside strings; whether each is JSON is for the caller to say."""
    depth, in_string, skip = 0, False, False  # skip: the character after a backslash stands in the next chunk
    held, size, opened = bytearray(), 0, line
    for chunk in chunks:
        start, at, skip = 0, int(skip), False
        while match := (_IN_STRING if in_string else _STRUCTURE).search(chunk, at):
            mark, at = match.group(), match.end()
            if mark == b"\n":
                line += 1
            elif mark == b"\\":
                skip, at = at == len(chunk), at + 1
            elif mark == b'"':
                in_string = not in_string
            elif mark in b"[{":
                depth += 1
                start = at if depth == 1 else start
            elif mark in b"]}" or depth == 1:
                depth -= mark != b","
                if depth == 0 or mark == b",":
                    yield from _element(opened, bytes(held) + chunk[start : at - 1], size + at - 1 - start)
                    held, size, opened, start = bytearray(), 0, line, at
                if depth == 0:
                    yield from _after(line, chunk[at:], chunks)
                    return
        size += len(chunk) - start
        if size <= MAX_ROW_BYTES:
            held += chunk[start:]
    if source.complete and source.flaw is None:
        yield Flaw(line, "open_array", "the JSON array is not closed")
    elif size > MAX_ROW_BYTES:
        yield _too_long(opened)


def _element(line: int, data: bytes, size: int) -> Iterator[Raw | Flaw]:
    """One element; `line` is where the separator before it stands, `size` its length even where `data` was not kept whole."""
    if size > MAX_ROW_BYTES:
        yield _too_long(line)
    elif bare := data.strip():
        yield Raw(line + data[: data.index(bare[:1])].count(b"\n"), bare)


def _after(line: int, tail: bytes, chunks: Iterator[bytes]) -> Iterator[Flaw]:
    if tail.strip() or any(chunk.strip() for chunk in chunks):
        yield Flaw(line, "after_array", "there is text after the end of the JSON array")


def _chunks(stream: Readable | Iterable[bytes]) -> Iterator[bytes]:
    read = getattr(stream, "read", None)
    if read is None:
        yield from (chunk for chunk in stream if chunk)  # type: ignore[union-attr]  # no read(): chunks
        return
    while chunk := read(CHUNK_BYTES):
        yield chunk


def _first_line(first: bytes, chunks: Iterator[bytes]) -> bytes:
    """`first` with what follows it, up to the end of the line if that comes soon."""
    while b"\n" not in first and len(first) < HEADER_BYTES and (more := next(chunks, b"")):
        first += more
    return first


def _begun(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """How chunks begin (four bytes, if there are so many), and the same chunks, those bytes in the first."""
    head = b""
    while len(head) < 4 and (chunk := next(chunks, b"")):
        head += chunk
    return head, _prepend(head, chunks)


def _prepend(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _skip_blank(chunks: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Chunks from the first that is not blank on, that one stripped on its left; with the lines passed over before."""
    passed = 0
    for chunk in chunks:
        if bare := chunk.lstrip():
            passed += chunk[: len(chunk) - len(bare)].count(b"\n")
            yield passed, bare
            break
        passed += chunk.count(b"\n")
    for chunk in chunks:
        yield passed, chunk
