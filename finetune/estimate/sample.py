"""The first rows of a dataset: how many there may be in all, how long they are, and what is wrong with them.

Reads at most ROWS rows and BYTES bytes, from up to FILES files evenly chosen, each from its beginning. Knows streams only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from finetune.config import Data
from finetune.data.formats import Errors, LineError, Reader
from finetune.data.reading import Flaw, Source
from finetune.data.row import Pair, Row
from finetune.estimate.ranges import Range, exactly

ROWS = 2_000
BYTES = 16 << 20
UNPACKED = 256 << 20
"""Bytes of all files together that gzip and zstd may make of them."""
FILES = 16
CHUNK = 1 << 12
"""Bytes read at once: small, so that little is read beyond the last row taken."""
HEAD_ONLY = 0.1
"""What is read stands at the beginning of files; the rest may differ by this share, besides what chance explains."""

Item = Row | Pair


@dataclass(frozen=True)
class Part:
    """One file of a dataset: its name, its bytes as stored, and how it is opened."""

    name: str
    size: int
    open: Callable[[], Iterable[bytes]]


@dataclass
class Sample:
    """What was read.

    Attributes:
        items: Rows that can be used.
        rows: Rows read, with those that cannot.
        bytes: Read, as stored.
        total: Bytes of all files, as stored.
        complete: Whether that was everything.
        errors: By file.
    """

    items: list[Item] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    total: int = 0
    complete: bool = True
    errors: dict[str, Errors] = field(default_factory=dict)
    _over: int = 0

    @property
    def in_all(self) -> Range:
        """How many rows the dataset has."""
        if self.complete or not self.rows:
            return exactly(self.rows)
        most = self.bytes / self.rows
        least = max((self.bytes - self._over) / self.rows, most / 4)
        sizes = [float(text_bytes(item)) for item in self.items]
        chance = 0.0
        if len(sizes) > 1 and (mean := statistics.fmean(sizes)):
            chance = 2 * statistics.stdev(sizes) / mean / math.sqrt(len(sizes))
        margin = 1 + HEAD_ONLY + chance
        return max(self.rows, self.total / most / margin), max(self.rows, self.total / least * margin)

    def problem(self) -> tuple[str, list[LineError], int] | None:
        """The first file with rows that cannot be used: its name, at most ten of them, and how many were seen."""
        for name, errors in self.errors.items():
            if errors.count:
                return name, errors.chosen(), errors.count
        return None


def take(
    parts: list[Part],
    data: Data,
    *,
    rows: int = ROWS,
    size: int = BYTES,
    stopped: Callable[[], bool] = lambda: False,
) -> Sample:
    """Read the beginning of a dataset. Never raises on its content.

    Args:
        parts: Its files.
        data: How they are read.
        rows: At most so many.
        size: At most about so many bytes, as stored.
        stopped: Asked at every row: whether to give up; then what was read is incomplete.
    """
    found = Sample(total=sum(part.size for part in parts))
    chosen = _evenly(parts, FILES)
    found.complete = len(chosen) == len(parts)
    reader = Reader(data)
    for number, part in enumerate(chosen):
        left = len(chosen) - number
        quota = (rows - found.rows) // left, (size - found.bytes) // left
        _read(part, reader, found, quota, stopped)
    return found


def text_bytes(item: Item) -> int:
    """Bytes of the texts of a row, in UTF-8."""
    return sum(len(text.encode()) for text in item.texts())


def turns(item: Item) -> int:
    """Messages of a row; 1 for a text."""
    return turns(item.chosen) + turns(item.rejected) if isinstance(item, Pair) else max(1, len(item.messages))


def trained_bytes(item: Item, data: Data) -> int:
    """Bytes of the texts of a row that are trained, in UTF-8."""
    if isinstance(item, Pair):
        return sum(len(row.messages[-1].content.encode()) for row in (item.chosen, item.rejected) if row.messages)
    if not item.messages:
        return len(item.text.encode()) + (len(item.prompt.encode()) if data.train_on == "all" else 0)
    spoken = [turn for turn in item.messages if data.train_on == "all" or (turn.role == "assistant" and turn.trained)]
    return sum(len(turn.content.encode()) for turn in (spoken[-1:] if data.train_on == "last" else spoken))


def _read(part: Part, reader: Reader, found: Sample, quota: tuple[int, int], stopped: Callable[[], bool]) -> None:
    """Read one file until it ends or its share is used up."""
    tap = _Tap(part, quota[1], stopped)
    errors = found.errors.setdefault(part.name, Errors())
    rows = 0
    with closing(tap):
        source = tap.source = Source(iter(tap), UNPACKED // FILES)
        for item in reader.rows(source):
            if rows == quota[0] or stopped():
                found.complete = False
                break
            if isinstance(item, Flaw):
                if tap.cut and not item.line:
                    continue  # that it ends too early is our doing
                errors.add(item.kind, LineError(item.line, item.message))
                rows += item.line > 0
            else:
                found.items.append(item)
                rows += 1
        if tap.cut or not source.complete:
            found.complete = False
        found.rows += rows
        found.bytes += tap.taken
        torn = max(map(text_bytes, found.items[-rows:]), default=0) if tap.cut and rows else 0
        found._over += 0 if found.complete else min(tap.last + torn, tap.taken)


class _Tap:
    """A file in small chunks, up to a limit, counted.

    Attributes:
        taken: Bytes given out.
        last: Of them in the last chunk.
        cut: Whether the limit ended it, or a wish to stop.
        source: Who reads from it; told when it is cut.
    """

    def __init__(self, part: Part, limit: int, stopped: Callable[[], bool]) -> None:
        self._stream: Any = part.open()
        self._limit, self._stopped = max(limit, CHUNK), stopped
        self.source: Source | None = None
        self.taken, self.last, self.cut = 0, 0, False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            for begin in range(0, len(chunk), CHUNK):
                piece = chunk[begin : begin + CHUNK]
                if self.taken >= self._limit or self._stopped():
                    self.cut = True
                    if self.source is not None:
                        self.source.complete = False  # a last row may be torn
                    return
                self.taken, self.last = self.taken + len(piece), len(piece)
                yield piece

    def close(self) -> None:
        """Hang up, if there is anything to."""
        if (close := getattr(self._stream, "close", None)) is not None:
            close()


def _evenly(parts: list[Part], most: int) -> list[Part]:
    count = min(most, len(parts))
    return [parts[index * len(parts) // count] for index in range(count)]
