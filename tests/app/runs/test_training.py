"""A training that shares no disk, against the served API: what it keeps there, what it does when others ask, and when nobody answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.db import Database
from app.runs import tokens
from finetune.exit_codes import BY_NAME
from finetune.progress import read_lines
from finetune.steps import TrainStep
from tests.app.conftest import Service
from tests.app.conftest import until as until_true
from tests.app.runs.conftest import Task

pytestmark = pytest.mark.db

Tasks = Callable[..., Awaitable[Task]]
Start = Callable[..., "Training"]
LEASE_SECONDS = 2.0


class Training:
    """The stub of FINE_TUNE as a process in a folder of its own."""

    def __init__(self, folder: Path, task: Task, url: str, seconds: float) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "train.json").write_text(TrainStep.model_validate({"lora": {}, "seed": 1}).text())
        (folder / "access.json").write_text(f'{{"url": "{url}", "token": "{task.token}"}}')
        line = [sys.executable, "-m", "finetune.stub", "train", "--job", "train.json", "--in", "access=access.json"]
        env = {**os.environ, "LLAMAFLOW_STUB_SECONDS": str(seconds), "LLAMAFLOW_UPLOAD_PATIENCE": "60"}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(line, cwd=folder, env=env, stdout=log, stderr=log)

    def steps(self) -> list[int]:
        """Steps in its copy of progress.jsonl."""
        lines, _ = read_lines(self.folder / "train" / "progress.jsonl")
        return [line["step"] for line in lines if line["event"] == "step"]

    def said(self) -> str:
        """What it printed."""
        return self.log.read_text()

    async def ended(self) -> int:
        """Its exit status."""
        return await asyncio.to_thread(self.process.wait, 60)


@pytest.fixture
def start(service: Service, tmp_path: Path) -> Iterator[Start]:
    """Starts trainings; all are ended with the test."""
    started: list[Training] = []

    def make(task: Task, *, url: str = "", seconds: float = 1.0) -> Training:
        started.append(Training(tmp_path / f"task-{len(started)}", task, url or service.url, seconds))
        return started[-1]

    yield make
    for training in started:
        training.process.kill()
        training.process.wait()


@pytest.fixture(autouse=True)
def soon(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that run out while a test waits."""
    monkeypatch.setattr(service.settings, "train_lease_seconds", LEASE_SECONDS)


def told(task: Task) -> list[dict[str, Any]]:
    """The job's progress.jsonl as the service has it."""
    return [json.loads(line) for line in task.ask("GET", "/lines").json()["text"].splitlines()]


def steps_told(task: Task) -> list[int]:
    return [line["step"] for line in told(task) if line["event"] == "step"]


def names(task: Task) -> set[str]:
    """Names in the mirror's record."""
    record = task.ask("GET", "/mirror").json()["mirror"]
    return {entry["path"] for entry in record["files"]} if record else set()


async def test_what_is_done_is_not_done_again_in_another_folder(tasks: Tasks, start: Start) -> None:
    task = await tasks()
    first = start(task)
    assert await first.ended() == 0, first.said()
    assert {"result.json", "metrics.csv", "adapter/adapter_model.safetensors"} <= names(task)
    assert (first.folder / "train" / "progress.jsonl").read_text() == task.ask("GET", "/lines").json()["text"]
    second = start(task)
    assert await second.ended() == 0, second.said()
    assert steps_told(task) == list(range(1, 11))
    for name in ("adapter/adapter_model.safetensors", "result.json", "metrics.csv"):
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes()


async def test_a_killed_training_goes_on_elsewhere_from_its_checkpoint(tasks: Tasks, start: Start) -> None:
    task = await tasks()
    first = start(task, seconds=5)
    await until_true(lambda: "checkpoint-5/adapter_model.safetensors" in names(task), 60)
    first.process.kill()
    second = start(task)
    assert await second.ended() == 0, second.said()
    starts = [line.get("resumed_from") for line in told(task) if line["event"] == "start"]
    assert starts == [None, 5]
    assert {f"checkpoint-{n}/adapter_model.safetensors" for n in (5, 10)} <= names(task)


@pytest.mark.slow
async def test_who_comes_second_waits_and_takes_over_what_was_trained(tasks: Tasks, start: Start) -> None:
    task = await tasks()
    first = start(task, seconds=20)
    await until_true(lambda: steps_told(task), 60)
    second = start(task)
    await until_true(lambda: "Another process trains this job; waiting for it." in second.said(), 60)
    assert (await first.ended(), await second.ended()) == (0, 0), second.said()
    assert steps_told(task) == list(range(1, 11))
    assert second.steps() == first.steps()


async def test_who_slept_past_its_lease_stops_and_nothing_of_it_is_taken(tasks: Tasks, start: Start) -> None:
    task = await tasks()
    sleeper = start(task, seconds=8)
    await until_true(lambda: steps_told(task), 60)
    sleeper.process.send_signal(signal.SIGSTOP)
    second = start(task)
    assert await second.ended() == 0, second.said()
    before = told(task)
    sleeper.process.send_signal(signal.SIGCONT)
    assert await sleeper.ended() == BY_NAME["ownership_lost"].status, sleeper.said()
    assert told(task) == before


@pytest.mark.slow
async def test_a_run_that_is_over_ends_its_training(tasks: Tasks, start: Start, db: Database) -> None:
    task = await tasks()
    training = start(task, seconds=20)
    await until_true(lambda: steps_told(task), 60)
    async with db.transaction() as session:
        await tokens.revoke(session, task.run.id)
    assert await training.ended() == BY_NAME["ownership_lost"].status, training.said()


@pytest.mark.slow
async def test_a_wish_reaches_the_training_which_saves_first(tasks: Tasks, start: Start, db: Database) -> None:
    task = await tasks()
    training = start(task, seconds=15)
    await until_true(lambda: steps_told(task), 60)
    async with db.transaction() as session:
        await tokens.ask(session, task.run.id, "pause")
    assert await training.ended() == BY_NAME["paused"].status, training.said()
    at = steps_told(task)[-1]
    assert f"checkpoint-{at}/adapter_model.safetensors" in names(task)
    assert told(task)[-1] == {**told(task)[-1], "event": "end", "status": "paused", "step": at}


async def test_while_nobody_answers_the_training_goes_on_and_tells_all_of_it_later(
    tasks: Tasks, start: Start, service: Service
) -> None:
    task = await tasks()
    with Line(service.url) as line:
        training = start(task, url=line.url, seconds=6)
        await until_true(lambda: steps_told(task), 60)
        line.cut()
        await until_true(lambda: len(training.steps()) == 10, 60)
        assert len(steps_told(task)) < 10
        line.mend()
        assert await training.ended() == 0, training.said()
    assert steps_told(task) == list(range(1, 11))
    assert "result.json" in names(task)


class Line:
    """A connection to the service that can be cut: new ones are closed at once, open ones are dropped."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._whole = True
        self._open: list[socket.socket] = []

    def __enter__(self) -> Line:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Nobody answers any more."""
        self._whole = False
        for end in self._open:
            hang_up(end)
        self._open.clear()

    def mend(self) -> None:
        """As if nothing had been."""
        self._whole = True

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for pair in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    hang_up(source)
    hang_up(target)


def hang_up(end: socket.socket) -> None:
    """Close a socket that may be closed."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
