"""kill -9 and SIGSTOP during FINE_TUNE, from outside: the job goes on, trains once, ends once, tells once."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.models import AdapterVersion, Checkpoint, Run, WebhookDelivery
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from finetune.progress import read_lines
from tests.app.worker.receiver import Receiver, receiving
from tests.app.worker.services import World, kill, until

pytestmark = pytest.mark.fault

Workers = Callable[..., subprocess.Popen[bytes]]
Behave = Callable[..., None]


@pytest.fixture
def workers(stored: World) -> Iterator[Workers]:
    """Starts workers as processes; all are ended afterwards, and whatever they left."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(stored.worker_process())
        return started[-1]

    yield start
    for worker in started:
        worker.send_signal(signal.SIGCONT)
        worker.terminate()
        worker.wait(30)


@pytest.fixture
def receiver(stored: World) -> Iterator[Receiver]:
    with receiving() as made:
        stored.settings = stored.settings.model_copy(update={"webhook_allow": made.allow})
        yield made


async def begin(world: World, receiver: Receiver) -> str:
    return await world.job(await world.project(), callback=receiver.url, suffix="fault")


async def saved(world: World) -> Any:
    """Whether the training has saved a checkpoint and goes on."""
    return await world.rows(Checkpoint)


def steps(world: World, job_id: str) -> Counter[int]:
    lines, _ = read_lines(folder.of(world.settings, job_id).train / "progress.jsonl")
    return Counter(line["step"] for line in lines if line["event"] == "step")


async def head_of(world: World) -> process.Process:
    """The living Nextflow of the newest run."""
    run = (await world.rows(Run))[-1]
    head = process.head(Path(run.folder))
    assert head is not None
    return head


async def audit(world: World, job_id: str, receiver: Receiver) -> None:
    """However it came: the job succeeded once, told once, registered once, and nothing is left running."""
    job = await until(lambda: world.is_over(job_id), 60)
    assert (job.status, job.error) == ("succeeded", None)

    async def told() -> bool:
        return [row.status for row in await world.rows(WebhookDelivery)] == ["delivered"]

    await until(told)
    messages = await world.messages(job_id)
    assert messages.count("The job has successfully completed") == 1
    assert messages.count("Step 10/10: training loss 0.10") == 1
    assert len({got.headers["webhook-id"] for got in receiver.received}) == 1
    assert [row.job_id for row in await world.rows(AdapterVersion)] == [job_id]
    assert process.members(label(job_id)) == []


async def test_a_training_outlives_its_worker_and_is_adopted(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver
) -> None:
    stub_tasks(seconds="5")
    first, job_id = workers(), await begin(stored, receiver)
    await until(lambda: saved(stored), 60)
    kill(first.pid)
    await asyncio.to_thread(first.wait)
    workers()
    await audit(stored, job_id, receiver)
    assert steps(stored, job_id) == dict.fromkeys(range(1, 11), 1)
    assert len(await stored.rows(Run)) == 1


async def test_a_training_outlives_its_nextflow_and_is_not_repeated(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver
) -> None:
    stub_tasks(seconds="5")
    workers()
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 60)
    kill((await head_of(stored)).pid)
    await audit(stored, job_id, receiver)
    assert steps(stored, job_id) == dict.fromkeys(range(1, 11), 1)
    assert [run.exit_status for run in await stored.rows(Run)] == [-signal.SIGKILL, 0]


async def test_after_everything_was_killed_the_training_goes_on_from_its_checkpoint(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver
) -> None:
    stub_tasks(seconds="5")
    first, job_id = workers(), await begin(stored, receiver)
    await until(lambda: saved(stored), 60)
    kill(first.pid)
    for member in process.members(label(job_id)):
        kill(member.pid)
    await asyncio.to_thread(first.wait)
    workers()
    await audit(stored, job_id, receiver)
    counted = steps(stored, job_id)
    assert {step: counted[step] for step in range(1, 6)} == dict.fromkeys(range(1, 6), 1)
    assert sorted(counted) == list(range(1, 11))


async def test_a_worker_that_slept_past_its_lease_writes_nothing_more(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver
) -> None:
    stub_tasks(seconds="5")
    first, job_id = workers(), await begin(stored, receiver)
    await until(lambda: saved(stored), 60)
    first.send_signal(signal.SIGSTOP)
    fence = (await stored.get(job_id)).fence

    async def taken() -> bool:
        return (await stored.get(job_id)).fence > fence

    workers()
    await until(taken, 30)
    first.send_signal(signal.SIGCONT)
    await audit(stored, job_id, receiver)
    assert steps(stored, job_id) == dict.fromkeys(range(1, 11), 1)
