"""A job's logs, read from the files its run left below the runs folder; bounded, and harmless on a terminal.

Reads only below the job's own folder, wherever links lead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from app.errors import NotFound
from app.models import Run, Stage

MAX_BYTES = 1 << 20
RUN_LOGS = ("stdout.log", "stderr.log")
ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")
HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def read(home: Path, runs: list[Run], stages: list[tuple[Stage, int]], *, stage: str | None, tail: int | None) -> str:
    """The log of one stage, or of everything: Nextflow's own of each run, then each stage's.

    Args:
        home: The job's folder.
        stage: Such as FINE_TUNE, in any case of letters.
        tail: Only so many lines of the end.
    Raises:
        NotFound: `stage_not_found`, naming those there are.
    """
    if stage is not None:
        named = [(row, run) for row, run in stages if row.process.lower() == stage.lower()]
        if not named:
            known = ", ".join(dict.fromkeys(row.process for row, _ in stages)) or "none yet"
            raise NotFound(
                f"This job has no stage {stage[:80]!r}; it has {known}.", code="stage_not_found", param="stage"
            )
        text = "".join(_stages(home, named))
    else:
        text = "".join([*_runs(home, runs), *_stages(home, stages)])
    text = text.encode()[-MAX_BYTES:].decode("utf-8", "ignore")
    return "".join(text.splitlines(keepends=True)[-tail:]) if tail is not None else text


def _runs(home: Path, runs: list[Run]) -> Iterator[str]:
    for run in runs:
        for name in RUN_LOGS:
            if found := tail_of(home, Path(run.folder) / name):
                yield f"== run {run.attempt}: {name}\n{_ended(found)}"


def _stages(home: Path, stages: list[tuple[Stage, int]]) -> Iterator[str]:
    for row, run in stages:
        found = tail_of(home, Path(row.workdir) / ".command.log") if row.workdir else ""
        yield f"== {row.process}: run {run}, attempt {row.attempt}, {row.status}\n{_ended(found)}"


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


def tail_of(home: Path, path: Path) -> str:
    """The end of a file below `home`, made harmless; empty if it is not there or leads elsewhere."""
    real = path.resolve()
    if not real.is_relative_to(home.resolve()) or not real.is_file():
        return ""
    try:
        with real.open("rb") as file:
            file.seek(max(0, real.stat().st_size - MAX_BYTES))
            return harmless(file.read(MAX_BYTES).decode("utf-8", "replace"))
    except OSError:
        return ""


def harmless(text: str) -> str:
    """Text without what moves a terminal's cursor, changes its colours or turns its direction."""
    text = ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text)
