"""A job's logs as text: read in pieces from where they lie, without secrets, and harmless on a terminal.

Never more than a MiB at once, however long a file or a line is. Of the disk only what lies below the job's own folder is read,
wherever links lead. Once that was cleared the logs lie on S3: archive.py.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.errors import NotFound
from app.jobs.redact import Redactor
from app.models import Run, Stage

MAX_BYTES = 1 << 20
BLOCK = 1 << 16
AROUND = 1 << 13
"""Bytes read before and behind a piece, for secrets that reach over its borders."""
RUN_LOGS = ("stdout.log", "stderr.log")
LINE_END = re.compile(rb"[\r\n](?!.*[\r\n])", re.DOTALL)
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Text(Protocol):
    """A file or an object that holds a log and may grow."""

    @property
    def where(self) -> str:
        """Its path or address."""

    async def size(self) -> int:
        """Bytes it has by now."""

    async def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on."""


@dataclass(frozen=True)
class File:
    """A log on this machine's disk; one that is gone is empty. path: checked to lie where it may be read."""

    path: Path

    @property
    def where(self) -> str:
        """Its path."""
        return str(self.path)

    async def size(self) -> int:
        """Bytes it has by now."""
        try:
            return (await asyncio.to_thread(self.path.stat)).st_size
        except OSError:
            return 0

    async def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on."""
        return await asyncio.to_thread(self._read, start, length)

    def _read(self, start: int, length: int) -> bytes:
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return b""
        try:
            return os.pread(handle, length, start)
        finally:
            os.close(handle)


@dataclass(frozen=True)
class Source:
    """One log of a job.

    Attributes:
        name: Its heading, such as `run 1: stdout.log` or `FINE_TUNE: run 1, attempt 1`.
        status: Of the stage, such as `succeeded`; None for Nextflow's own.
        stage: Such as FINE_TUNE; None for Nextflow's own.
        text: None while there is none.
    """

    name: str
    status: str | None
    stage: str | None
    text: Text | None

    @property
    def heading(self) -> str:
        """Name and status."""
        return f"{self.name}, {self.status}" if self.status else self.name


class Place(Protocol):
    """Where the logs of a job lie."""

    def of_run(self, run: Run, name: str) -> Text | None:
        """Nextflow's own log of that name; None if there is none."""

    def of_stage(self, stage: Stage, run: int) -> Text | None:
        """The log of a stage of the job's `run`-th run; None if there is none."""


@dataclass(frozen=True)
class Folder:
    """The job's folder on this machine, `home`. What lies elsewhere when every link is followed is not there."""

    home: Path

    def of_run(self, run: Run, name: str) -> Text | None:
        """Nextflow's own log of that name."""
        return self._below(Path(run.folder) / name)

    def of_stage(self, stage: Stage, run: int) -> Text | None:
        """The log of a stage."""
        return self._below(Path(stage.workdir) / ".command.log") if stage.workdir else None

    def _below(self, path: Path) -> Text | None:
        try:
            real = path.resolve()
            return File(real) if real.is_relative_to(self.home.resolve()) and real.is_file() else None
        except (OSError, RuntimeError):
            return None


def sources(place: Place, runs: Sequence[Run], stages: Sequence[tuple[Stage, int]]) -> list[Source]:
    """The logs of a job in the order in which they are read: Nextflow's own of each run, then each stage's.

    Args:
        stages: Each with the number of its run.
    """
    own = [
        Source(f"run {run.attempt}: {name}", None, None, text)
        for run in runs
        for name in RUN_LOGS
        if (text := place.of_run(run, name)) is not None
    ]
    return own + [
        Source(f"{row.process}: run {run}, attempt {row.attempt}", row.status, row.process, place.of_stage(row, run))
        for row, run in stages
    ]


def of_stage(found: list[Source], stage: str | None) -> list[Source]:
    """The logs of one stage, in any case of letters; all of them without one.

    Raises:
        NotFound: `stage_not_found`, naming those there are.
    """
    if stage is None:
        return found
    named = [source for source in found if source.stage is not None and source.stage.lower() == stage.lower()]
    if not named:
        known = ", ".join(dict.fromkeys(source.stage for source in found if source.stage)) or "none yet"
        raise NotFound(f"This job has no stage {stage[:80]!r}; it has {known}.", code="stage_not_found", param="stage")
    return named


@dataclass(frozen=True)
class Reader:
    """Reads logs.

    Args:
        redactor: Knows the secrets.
        over: The job has ended: its last lines are whole. Until then a line is shown once it is, lest half a secret is.
    """

    redactor: Redactor
    over: bool

    async def ending(self, found: list[Source], tail: int | None) -> str:
        """The end of several logs under their headings: at most MAX_BYTES, and `tail` lines."""
        parts: list[str] = []
        size, lines = 0, 0
        for source in reversed(found):
            shown = await self._end_of(source.text, tail) if source.text is not None else ""
            shown += "" if not shown or shown.endswith("\n") else "\n"
            if shown or source.stage is not None:
                parts.append(f"== {source.heading}\n{shown}")
            size, lines = size + len(shown), lines + shown.count("\n")
            if size >= MAX_BYTES or (tail is not None and lines >= tail):
                break
        text = "".join(reversed(parts)).encode()[-MAX_BYTES:].decode("utf-8", "ignore")
        return "".join(text.splitlines(keepends=True)[-tail:]) if tail is not None else text

    async def page(self, text: Text | None, offset: int, limit: int = MAX_BYTES) -> tuple[str, int]:
        """Whole lines from byte `offset` on, and the byte to go on from. A line over `limit` bytes comes in pieces."""
        if text is None:
            return "", 0
        offset = min(offset, await text.size())
        data = await text.read(max(0, offset - AROUND), min(offset, AROUND) + limit + AROUND)
        start = min(offset, AROUND)
        there = data[start : start + limit]
        ended = LINE_END.search(there)
        goes_on = len(there) == limit or not self.over
        length = len(there) if not goes_on else ended.end() if ended else limit if len(there) == limit else 0
        shown = self.redactor.redacted(data, start, start + length)
        return harmless(shown.decode("utf-8", "replace")), offset + length

    async def begin(self, text: Text, tail: int | None) -> int:
        """The byte where the last `tail` lines begin, or as many as MAX_BYTES hold."""
        size = await text.size()
        floor = max(0, size - MAX_BYTES)
        if tail is None:
            return floor + _after_line(await text.read(floor, BLOCK)) if floor else 0
        at, left = size, tail + 1  # the last line's own end is one
        while at > floor:
            start = max(floor, at - BLOCK)
            data = await text.read(start, at - start)
            ends = [found.start() for found in re.finditer(rb"\n", data)]
            if len(ends) >= left:
                return start + ends[-left] + 1
            at, left = start, left - len(ends)
        return floor

    async def _end_of(self, text: Text, tail: int | None) -> str:
        shown, _ = await self.page(text, await self.begin(text, tail))
        return shown


def harmless(text: str) -> str:
    """Text without what moves a terminal's cursor, changes its colours or turns its direction."""
    text = ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text)


def _after_line(data: bytes) -> int:
    end = data.find(b"\n") + 1
    return end if end < len(data) else 0
