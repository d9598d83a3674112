"""Fixtures of the fault tier: those of the worker, workers as processes, a receiver of callbacks, an eye on who trains."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.app.worker.receiver import Receiver, receiving
from tests.app.worker.services import World, database_url, s3_server, settings, stored, stub_tasks, world
from tests.fault.quick import quick_nextflow
from tests.fault.trainers import Trainers, watched

__all__ = ["database_url", "s3_server", "settings", "stored", "stub_tasks", "world"]


@pytest.fixture
def workers(stored: World) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts workers as processes; all are ended afterwards, and whatever they left."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**given: Any) -> subprocess.Popen[bytes]:
        started.append(stored.worker_process(**given))
        return started[-1]

    yield start
    for worker in started:
        worker.send_signal(signal.SIGCONT)
        worker.terminate()
    for worker in started:
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:  # what stands around a worker may be deaf to signals
            worker.kill()
            worker.wait(30)


@pytest.fixture
def quick(stored: World) -> Iterator[None]:
    """A head that takes a moment instead of Nextflow."""
    with quick_nextflow(stored.settings.state_dir) as launcher:
        stored.settings = stored.settings.model_copy(update={"nextflow": launcher})
        yield


@pytest.fixture
def receiver(stored: World) -> Iterator[Receiver]:
    """A receiver of callbacks that the workers may reach."""
    with receiving() as made:
        stored.settings = stored.settings.model_copy(update={"webhook_allow": made.allow})
        yield made


@pytest.fixture
def trainers() -> Iterator[Trainers]:
    """Looks all the while who trains: never two at once with one train key."""
    with watched() as found:
        yield found
