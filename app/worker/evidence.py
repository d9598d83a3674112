"""How a run ended, judged by what it left: the exit record, the trace, the failed task's error.json and exit status.

Reads files, decides nothing about intents and writes nothing. Nextflow ends with 1 for a failure and for TERM alike, so its
own status says only whether all went well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from app.nextflow import progress
from app.nextflow.process import ExitRecord
from app.nextflow.progress import Row
from finetune.exit_codes import BY_NAME, BY_STATUS, SIGNALLED, StepError

LOCKED = "Unable to acquire lock on session"
FULL = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes:
        outcome: `succeeded`; `failed` with `error`; `paused`: the training saved and ended as it was asked to; `lost`: it
            did not end by itself and may be started again.
        error: The job's error: code, message, param.
    """

    outcome: str
    error: dict[str, str | None] | None = None


SUCCEEDED = Verdict("succeeded")
PAUSED = Verdict("paused")
LOST = Verdict("lost")
STOPPED = {"paused": PAUSED, "interrupted": LOST}
"""Ends that a step was asked for: nobody's failure."""


def judge(run_folder: Path, record: ExitRecord | None) -> Verdict:
    """What a run's folder tells about its end.

    Args:
        run_folder: Its trace and logs.
        record: How Nextflow ended; None if it left no word.
    """
    if record is not None and record.status == 0:
        return SUCCEEDED
    if record is not None and record.status is None:
        return _failed("internal_error", f"Nextflow could not be started: {record.error}")
    rows, _ = progress.read_rows(run_folder / "trace.tsv")
    fatal = [row for row in rows if row.status == "FAILED" and row.error_action != "RETRY"]
    if fatal:
        return _judge_task(fatal[0], rows)
    if record is None or record.asked or record.status is None or record.status < 0:
        return LOST
    if any(row.status == "ABORTED" for row in rows):
        return LOST
    said = progress.tail(run_folder / "stdout.log") + progress.tail(run_folder / "stderr.log")
    if LOCKED in said or _broke_off(run_folder):
        return LOST
    full = any(words in said for words in FULL)
    return _failed("disk_full") if full else _failed("internal_error", _nextflow_said(said))


def _broke_off(run_folder: Path) -> bool:
    """Whether Nextflow ended in the middle of its work without a word about why: where nothing can be written, it cannot say so."""
    lines = progress.tail(run_folder / "stdout.log").strip().splitlines()
    quiet = not progress.tail(run_folder / "stderr.log").strip()
    return quiet and bool(lines) and lines[-1].startswith("[") and "Submitted process" in lines[-1]


def _judge_task(row: Row, rows: list[Row]) -> Verdict:
    made = progress.read_object(Path(row.workdir) / "error.json")
    if made is not None and made.get("code") in BY_NAME:
        if made["code"] in STOPPED:
            return STOPPED[made["code"]]
        return Verdict("failed", {key: made.get(key) for key in ("code", "message", "param")})
    if row.exit in BY_STATUS:
        name = BY_STATUS[row.exit].name
        return STOPPED.get(name) or _failed(name)
    if row.exit == 137 and _killed_again(row, rows):
        return _failed(
            "out_of_memory",
            f"{row.process} was killed {row.attempt} times (exit status 137), most likely for memory. {BY_NAME['out_of_memory'].remedy}",
        )
    if row.exit in SIGNALLED or row.exit is None:
        return LOST
    return _failed(
        "internal_error", f"{row.process} stopped with exit status {row.exit}. Read its log: stage {row.process}."
    )


def _killed_again(row: Row, rows: list[Row]) -> bool:
    """Whether every attempt of a task was killed: one kill may be anybody's, all of them are the memory's."""
    attempts = [other for other in rows if other.process == row.process and other.status == "FAILED"]
    return len(attempts) > 1 and all(other.exit == 137 for other in attempts)


def _nextflow_said(text: str) -> str:
    start = text.find("ERROR ~")
    shown = text[start + 7 :] if start >= 0 else text[-600:]
    first = " ".join(shown.split())[:600]
    return f"Nextflow stopped on an error of its own: {first or 'it said nothing'}"


def _failed(name: str, message: str | None = None) -> Verdict:
    return Verdict("failed", StepError(name, message).as_error())
