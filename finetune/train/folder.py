"""The job's train/ folder: who trains in it, how far the training has come, and what was asked of it meanwhile.

It outlives every attempt: whatever is started twice trains once. Checkpoints and the product are written beside and
renamed, `result.json` comes last. Knows files and locks, no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.config import MAKES
from finetune.progress import append, read_lines, sync_folder, write_atomic
from finetune.steps import Base, Resolved, Result, TrainStep
from finetune.train import history

VERSION = 2
"""Of what training makes from equal inputs; raised when that changes, so that no old result is taken for a new one."""

PREVIOUS = "previous"
CHECKPOINT = "checkpoint-"
STATE = "trainer_state.json"


def train_key(step: TrainStep, base: Base, resolved: Resolved, parent: str | None = None) -> str:
    """What decides the weights that come out: base, data, configuration, adapter's shape, seed, who trains. 64 hex digits.

    Args:
        parent: sha256 of the weights that are gone on from.
    """
    facts = {
        "version": VERSION,
        "base": base.revision,
        "resolved": resolved.model_dump(mode="json"),
        "technique": step.technique,
        "lora": step.lora.model_dump(mode="json"),
        "seed": step.seed,
        "method": step.method,
        "backend": "own" if step.backend == "auto" else step.backend,
        "parent": parent,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class TrainFolder:
    """One train/ folder.

    Args:
        path: Made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self.progress = self.path / "progress.jsonl"

    @property
    def product(self) -> Path:
        """What came out: adapter/, or model/ where every weight was trained. Need not be there yet."""
        places = [self.path / name for name in dict.fromkeys(MAKES.values())]
        return next((place for place in places if place.is_dir()), places[0])

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the only one who trains here; waits while another process does. Ends with the process, however it ends."""
        with (self.path / "owner.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another process trains in {self.path}; waiting for it.", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def claim(self, key: str) -> None:
        """Make the folder that of the training `key`. Another training's files are put aside, replacing what was put aside before."""
        held = self.path / "train_key"
        if held.is_file() and held.read_text(encoding="utf-8").strip() != key:
            shutil.rmtree(self.path / PREVIOUS, ignore_errors=True)
            (self.path / PREVIOUS).mkdir()
            print("The folder holds another training: it is put aside, this one begins anew.", flush=True)
            for path in self.path.iterdir():
                if path.name not in (PREVIOUS, "owner.lock", "control.json", "train_key"):
                    path.rename(self.path / PREVIOUS / path.name)
        if not held.is_file() or held.read_text(encoding="utf-8").strip() != key:
            write_atomic(held, key + "\n")

    def result(self) -> Result | None:
        """How the training ended; None if it has not."""
        try:
            return Result.model_validate_json((self.path / "result.json").read_bytes())
        except (OSError, ValueError):
            return None

    def finished(self) -> Result | None:
        """The result of a training that succeeded and whose product is here; None if there is still something to do."""
        result = self.result()
        return result if result is not None and result.status == "succeeded" and self.product.is_dir() else None

    def begin(self) -> None:
        """Forget how an earlier attempt ended, and what it left half written."""
        (self.path / "result.json").unlink(missing_ok=True)
        for path in self.path.glob(".making-*"):
            shutil.rmtree(path, ignore_errors=True)

    def end(self, result: Result, step: int) -> None:
        """Say how the training ended: metrics, the last progress line, and last of all result.json."""
        self.write_metrics()
        append(self.progress, "end", status=result.status, step=step)
        write_atomic(self.path / "result.json", result.text())

    def write_metrics(self) -> None:
        """Write metrics.csv from the lines of progress.jsonl."""
        write_atomic(self.path / "metrics.csv", history.metrics_csv(self.lines()))

    def lines(self) -> list[dict[str, Any]]:
        """The lines of progress.jsonl so far."""
        found: list[dict[str, Any]] = []
        offset, before = 0, -1
        while offset != before:
            before = offset
            lines, offset = read_lines(self.progress, offset)
            found += lines
        return found

    def intent(self) -> str | None:
        """What control.json asks for: `pause`, `stop`, or nothing."""
        try:
            asked = json.loads((self.path / "control.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        intent = asked.get("intent") if isinstance(asked, dict) else None
        return intent if intent in ("pause", "stop") else None

    def obeyed(self) -> None:
        """What control.json asked for is done: the next attempt goes on."""
        (self.path / "control.json").unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = [path for path in self.path.glob(f"{CHECKPOINT}*") if (path / STATE).is_file()]
        return sorted((path for path in found if step_of(path) is not None), key=lambda path: step_of(path) or 0)

    def keep(self, limit: int) -> None:
        """Remove all but the newest `limit` checkpoints."""
        for path in self.checkpoints()[:-limit]:
            doomed = self.path / f".making-{path.name}"
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A folder that appears as `name` when it is whole and on disk, replacing what was there; not at all if writing it fails."""
        beside = self.path / f".making-{name}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        publish(beside, self.path / name)


def step_of(checkpoint: Path) -> int | None:
    """The step a checkpoint was made after, by its name; None if it is no checkpoint's."""
    digits = checkpoint.name.removeprefix(CHECKPOINT)
    return int(digits) if checkpoint.name.startswith(CHECKPOINT) and digits.isdecimal() else None


def publish(beside: Path, place: Path) -> None:
    """Bring a folder that was written beside to its place, once all of it is on disk."""
    for path in beside.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(beside)
    if place.is_dir():
        old = place.with_name(f".making-old-{place.name}")
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        beside.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        beside.rename(place)
    sync_folder(place.parent)
