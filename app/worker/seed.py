"""What a retried job is given of the old one: its last checkpoint and the history up to it, before its first run.

Whether that fits is not judged here: `train_key` goes with it, and a training with another key puts it all aside. Files are
linked, not copied: nobody changes a checkpoint's files in place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finetune.progress import read_lines, write_atomic

CHECKPOINT, STATE, KEY, PROGRESS = "checkpoint-", "trainer_state.json", "train_key", "progress.jsonl"
SPENT = ("seconds", "cpu_seconds")
"""Not handed on: a retry has its own time and its own usage."""


def seed(old: Path, new: Path) -> int | None:
    """Bring the newest checkpoint of one train/ folder into another, which holds none of its own. May be broken off and done again.

    Args:
        old: Left by a job that has ended; need not be there.
        new: Of the job that retries it.
    Returns:
        The step it goes on from; None if there is nothing to go on from.
    """
    newest = max(((step, path) for path in old.glob(f"{CHECKPOINT}*") if (step := _step(path))), default=None)
    if newest is None or not (old / KEY).is_file() or (new / KEY).exists():
        return None
    step, checkpoint = newest
    beside = new / f".making-{checkpoint.name}"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(checkpoint, beside, copy_function=_link)
    shutil.rmtree(new / checkpoint.name, ignore_errors=True)
    beside.rename(new / checkpoint.name)
    write_atomic(new / PROGRESS, history(_told(old), new, step))
    write_atomic(new / KEY, (old / KEY).read_bytes())
    return step


def _step(path: Path) -> int | None:
    digits = path.name.removeprefix(CHECKPOINT)
    return int(digits) if digits.isdecimal() and (path / STATE).is_file() else None


def history(lines: Iterable[dict[str, Any]], new: Path, step: int) -> str:
    """What the old training told up to the checkpoint, without the time it took: the new one's first lines."""
    return "".join(json.dumps(_stripped(line, new)) + "\n" for line in lines if _counts(line, step))


def _told(old: Path) -> Iterator[dict[str, Any]]:
    offset, before = 0, -1
    while offset != before:
        before = offset
        lines, offset = read_lines(old / PROGRESS, offset)
        yield from lines


def _counts(line: dict[str, Any], step: int) -> bool:
    at = line.get("step")
    if line.get("event") == "start":
        return (line.get("resumed_from") or 0) <= step
    return line.get("event") in ("step", "evaluation", "checkpoint") and isinstance(at, int) and at <= step


def _stripped(line: dict[str, Any], new: Path) -> dict[str, Any]:
    kept = {name: value for name, value in line.items() if name not in SPENT}
    return kept | {"path": str(new / f"{CHECKPOINT}{line['step']}")} if line["event"] == "checkpoint" else kept


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)
    return target
