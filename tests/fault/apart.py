"""A world whose tasks share no disk with the worker, although they run beside it: they are told to keep their state by the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from tests.app.conftest import serving
from tests.app.worker.services import World

LEASE_SECONDS = 2.0


@contextmanager
def apart(world: World) -> Iterator[World]:
    """Serve the API for the world's tasks, and tell its workers that profile `local` shares no disk."""
    own = {"unshared_profiles": ["local"], "train_lease_seconds": LEASE_SECONDS}
    world.settings = world.settings.model_copy(update=own)
    with serving(world.settings) as url:
        world.settings = world.settings.model_copy(update={"tasks_url": url})
        yield world


def token(world: World, job_id: str) -> str:
    """The token of the job's newest run, from the worker's file."""
    return str(json.loads(folder.of(world.settings, job_id).access.read_text())["token"])


def trainers(job_id: str) -> list[int]:
    """Pids of the processes that train a job."""
    found = [member.pid for member in process.members(label(job_id))]
    return [pid for pid in found if b"finetune.stub\0train" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
