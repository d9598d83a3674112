"""Looks many times a second who trains, from outside: two at once with one train key would be wrong weights."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.nextflow.command import LABEL

SAMPLE_SECONDS = 0.05


@dataclass
class Trainers:
    """What was seen.

    Attributes:
        samples: How often it was looked.
        seen: Train key (of a job) → pids that ever trained it.
        doubles: Train key and the pids that trained it at one sample.
    """

    samples: int = 0
    seen: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    doubles: list[tuple[str, set[int]]] = field(default_factory=list)

    def look(self) -> None:
        """Take one sample."""
        now: dict[str, set[int]] = defaultdict(set)
        for pid, key in _training():
            now[key].add(pid)
        for key, pids in now.items():
            self.seen[key] |= pids
            if len(pids) > 1:
                self.doubles.append((key, pids))
        self.samples += 1


@contextmanager
def watched() -> Iterator[Trainers]:
    """Look until the block ends; then there must have been something to see, and never two trainers of one key."""
    found, stop = Trainers(), threading.Event()

    def look() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            found.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
    assert found.seen, f"nobody was seen training in {found.samples} samples"
    assert found.doubles == []


def _training() -> Iterator[tuple[int, str]]:
    """Who holds the lock of a train/ folder: pid, and the job with its train key."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # gone meanwhile
                yield from _held(entry)


def _held(entry: Path) -> Iterator[tuple[int, str]]:
    job = next(
        (part for part in (entry / "environ").read_bytes().split(b"\0") if part.startswith(LABEL.encode())), None
    )
    if job is None:
        return
    for link in (entry / "fd").iterdir():
        lock = link.readlink()
        if lock.name == "owner.lock" and "FLOCK" in (entry / "fdinfo" / link.name).read_text():
            key = lock.with_name("train_key")
            yield int(entry.name), f"{job.decode()} {key.read_text().strip() if key.is_file() else ''}"
