"""What the tests of this tier begin with and wait for: a job with a callback, a stage that runs, a checkpoint, a process."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.models import Checkpoint, Run, Stage
from app.nextflow import process
from app.nextflow.process import Process
from app.worker import folder
from app.worker.launch import label
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World
from tests.fault.audit import lines_of

Workers = Callable[..., subprocess.Popen[bytes]]
Behave = Callable[..., None]

ONCE = dict.fromkeys(range(1, 11), 1)
"""Each of the stub's optimiser steps done a single time, as `steps` counts them."""


async def begin(world: World, receiver: Receiver, **spec: Any) -> str:
    """A new job that calls back."""
    return await world.job(await world.project(), callback=receiver.url, suffix="fault", **spec)


async def saved(world: World) -> Any:
    """Whether a training has saved a checkpoint."""
    return await world.rows(Checkpoint)


async def running(world: World, process: str) -> Any:
    """Whether a task of this process runs."""
    return [row for row in await world.rows(Stage) if row.process == process and row.status == "running"]


def steps(world: World, job_id: str) -> Counter[int]:
    """How often each optimiser step was done."""
    lines = lines_of(folder.of(world.settings, job_id).train / "progress.jsonl")
    return Counter(line["step"] for line in lines if line["event"] == "step")


async def head_of(world: World) -> Process:
    """The living Nextflow of the newest run."""
    run = (await world.rows(Run))[-1]
    head = process.head(Path(run.folder))
    assert head is not None
    return head


def trainer_of(job_id: str) -> Process:
    """The living process of FINE_TUNE: the one that works, not the shells around it."""
    for member in process.members(label(job_id)):
        words = Path(f"/proc/{member.pid}/cmdline").read_bytes().split(b"\0")
        if b"train" in words and b"-m" in words:
            return member
    raise AssertionError(f"{job_id} has no trainer")
