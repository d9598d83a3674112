"""What Nextflow and its tasks leave behind while they run, read from where the last reading ended.

Lines of its output, rows of its trace, marks in task folders, the steps' reports and the trainer's progress.jsonl become plain
values. Reads files, writes none, knows no database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.progress import read_lines

READ_LIMIT = 1 << 20
"""Bytes of a text file taken at once; a longer line is passed over."""

FINE_TUNE, PREPARE_DATA = "FINE_TUNE", "PREPARE_DATA"

_SUBMITTED = re.compile(
    r"\[([0-9a-f]{2}/[0-9a-f]{6})\] (Submitted|Re-submitted|Cached) process > ([\w:.-]+)(?: \(.*\))?"
)


@dataclass(frozen=True)
class Submitted:
    """A task that Nextflow named in its output. task_hash: the beginning of its work folder, such as `88/ffcdb3`."""

    task_hash: str
    process: str
    cached: bool = False


@dataclass(frozen=True)
class Began:
    """A task whose script runs. time: unix seconds."""

    task_hash: str
    process: str
    time: float
    workdir: str


@dataclass(frozen=True)
class Row:
    """A row of the trace: one attempt of a task that ended. Times are unix seconds, None where Nextflow had none."""

    task_hash: str
    process: str
    status: str
    exit: int | None
    attempt: int
    submit: float | None
    start: float | None
    complete: float | None
    peak_rss: int | None
    workdir: str
    error_action: str | None


@dataclass(frozen=True)
class Ended:
    """A row of the trace, with what its step reported: `{"message", "data"}`."""

    row: Row
    report: dict[str, Any] | None


@dataclass(frozen=True)
class Cursor:
    """How far a run was read.

    Attributes:
        stdout: Bytes of Nextflow's output; trace, progress: of the trace and of the trainer's progress.jsonl.
        waiting: Tasks submitted that have not begun; running: begun and not ended. Task hash to process.
        folders: Process to work folder, of tasks that ended well.
        resolved: Whether the resolved values were told.
        training: What `app.worker.training` remembers between two readings.
    """

    stdout: int = 0
    trace: int = 0
    progress: int = 0
    waiting: dict[str, str] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    resolved: bool = False
    training: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For the run's row."""
        return dict(vars(self))

    def for_next_run(self) -> Cursor:
        """Where the job's next run goes on: its output and trace are new, the trainer's progress is not."""
        return Cursor(progress=self.progress, training=self.training, resolved=self.resolved)


@dataclass(frozen=True)
class Seen:
    """What one reading found. `lines` are the trainer's."""

    submitted: list[Submitted]
    began: list[Began]
    ended: list[Ended]
    lines: list[dict[str, Any]]

    def __bool__(self) -> bool:
        return bool(self.submitted or self.began or self.ended or self.lines)


def look(run_folder: Path, work: Path, train: Path, cursor: Cursor) -> tuple[Seen, Cursor]:
    """Everything new since `cursor`.

    Args:
        run_folder: The launch's own folder: stdout.log, trace.tsv.
        work: Nextflow's work folder.
        train: The job's train/ folder: progress.jsonl.
        cursor: Where the last reading ended.
    Returns:
        What is new, and the cursor to go on from. Call again while there is something.
    """
    text, stdout = read_text(run_folder / "stdout.log", cursor.stdout)
    rows, trace = read_rows(run_folder / "trace.tsv", cursor.trace)
    lines, progress = read_lines(train / "progress.jsonl", cursor.progress)
    named = submissions(text)
    waiting = cursor.waiting | {task.task_hash: task.process for task in named if not task.cached}
    began = _begun(work, waiting, {row.task_hash for row in rows})
    ended = [Ended(row, read_report(Path(row.workdir)) if row.status == "COMPLETED" else None) for row in rows]
    over = {row.task_hash for row in rows}
    running = cursor.running | {task.task_hash: task.process for task in began}
    well = {row.process: row.workdir for row in rows if row.status in ("COMPLETED", "CACHED")}
    moved = replace(
        cursor,
        stdout=stdout,
        trace=trace,
        progress=progress,
        waiting={key: name for key, name in waiting.items() if key not in running and key not in over},
        running={key: name for key, name in running.items() if key not in over},
        folders=cursor.folders | well,
    )
    return Seen(named, began, ended, lines), moved


def submissions(lines: Iterable[str]) -> list[Submitted]:
    """The tasks that lines of Nextflow's output name, in order."""
    found = (_SUBMITTED.match(line) for line in lines)
    return [Submitted(match[1], match[3], match[2] == "Cached") for match in found if match]


def read_rows(path: Path, offset: int = 0) -> tuple[list[Row], int]:
    """The whole rows of a trace file from `offset` on, and where to go on."""
    lines, moved = read_text(path, offset)
    if not lines:
        return [], moved
    header = lines[0] if offset == 0 else _first_line(path)
    return parse_rows(header, lines[1:] if offset == 0 else lines), moved


def parse_rows(header: str, lines: Iterable[str]) -> list[Row]:
    """Rows of a raw, tab-separated trace. A torn row is passed over."""
    names = header.split("\t")
    cells = (line.split("\t") for line in lines)
    return [_row(dict(zip(names, row, strict=True))) for row in cells if len(row) == len(names)]


def read_text(path: Path, offset: int = 0) -> tuple[list[str], int]:
    """The whole lines of a text file from `offset` on, at most READ_LIMIT bytes, and where to go on.

    A last line without its newline is left for the next call; one longer than the limit is skipped in pieces.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(READ_LIMIT)
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if end == 0:
        return [], offset + (len(data) if len(data) == READ_LIMIT else 0)
    return data[: end - 1].decode(errors="replace").split("\n"), offset + end


def work_folder(work: Path, task_hash: str) -> Path | None:
    """The work folder of a task, if it is there yet."""
    first, _, rest = task_hash.partition("/")
    return next(iter(sorted((work / first).glob(f"{rest}*"))), None)


def task_exit(folder: Path) -> int | None:
    """The exit status that a task's wrapper left; None while it runs, or when it was killed."""
    text = _text(folder / ".exitcode").strip()
    return int(text) if text.isdigit() else None


def read_report(folder: Path) -> dict[str, Any] | None:
    """What the step of a task reported, `{"message": sentence, "data": numbers}`."""
    for path in sorted(folder.glob("*.report.json")):
        made = read_object(path)
        if made is not None and isinstance(made.get("message"), str):
            return {"message": made["message"], "data": made["data"] if isinstance(made.get("data"), dict) else {}}
    return None


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is none."""
    try:
        made = json.loads(_text(path))
    except ValueError:
        return None
    return made if isinstance(made, dict) else None


def tail(path: Path, size: int = 4096) -> str:
    """The last `size` bytes of a text file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _begun(work: Path, waiting: dict[str, str], over: set[str]) -> list[Began]:
    found = []
    for task_hash, process in waiting.items():
        folder = work_folder(work, task_hash)
        try:
            if folder is not None and task_hash not in over:
                found.append(Began(task_hash, process, (folder / ".command.begin").stat().st_mtime, str(folder)))
        except FileNotFoundError:
            continue
    return found


def _row(cells: dict[str, str]) -> Row:
    exit_status = _int(cells["exit"])
    return Row(
        task_hash=cells["hash"],
        process=cells["process"].rpartition(":")[2],
        status=cells["status"],
        exit=None if exit_status == 2**31 - 1 else exit_status,
        attempt=_int(cells["attempt"]) or 1,
        submit=_seconds(cells["submit"]),
        start=_seconds(cells["start"]),
        complete=_seconds(cells["complete"]),
        peak_rss=_int(cells["peak_rss"]),
        workdir=cells["workdir"],
        error_action=None if cells["error_action"] == "-" else cells["error_action"],
    )


def _int(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _seconds(text: str) -> float | None:
    return int(text) / 1000 if text.isdigit() else None


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline(READ_LIMIT).rstrip("\n")


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(READ_LIMIT)
    except OSError:
        return ""
