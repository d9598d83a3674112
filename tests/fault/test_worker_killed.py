"""kill -9, SIGSTOP and TERM of a worker, from outside: the job goes on, trains once, ends once, tells once."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from app.models import Run
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, kill, until
from tests.fault.audit import audit
from tests.fault.scene import ONCE, Behave, Workers, begin, running, saved, steps
from tests.fault.trainers import Trainers

pytestmark = pytest.mark.fault

STAGES = {
    "DOWNLOAD_DATA": "download",
    "FETCH_MODEL": "fetch",
    "PREPARE_DATA": "prepare",
    "EVALUATE": "evaluate",
    "UPLOAD_MODEL": "upload",
}


async def test_a_training_outlives_its_worker_and_is_adopted(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    first, job_id = workers(), await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    kill(first.pid)
    await asyncio.to_thread(first.wait)
    workers()
    await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE
    assert len(await stored.rows(Run)) == 1


async def test_a_worker_that_slept_past_its_lease_writes_nothing_more(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    first, job_id = workers(), await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    first.send_signal(signal.SIGSTOP)
    fence = (await stored.get(job_id)).fence
    workers()
    await until(lambda: taken(stored, job_id, fence), 120)
    first.send_signal(signal.SIGCONT)
    await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE


async def test_a_worker_that_is_asked_to_go_hands_its_run_to_another_at_once(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    first, job_id = workers(lease_seconds=600.0), await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    fence = (await stored.get(job_id)).fence
    workers(lease_seconds=600.0)
    first.terminate()
    await until(lambda: taken(stored, job_id, fence), 120)
    assert await asyncio.to_thread(first.wait, 30) == 0
    await audit(stored, job_id, receiver=receiver)
    assert (steps(stored, job_id), len(await stored.rows(Run))) == (ONCE, 1)
    assert "The worker that held this job is gone; another one took it over." not in await stored.messages(job_id)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
async def test_a_worker_killed_in_any_other_stage_is_followed_by_another(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers, stage: str
) -> None:
    stub_tasks(seconds="1", slow=f"{STAGES[stage]}=4")
    first, job_id = workers(), await begin(stored, receiver)
    await until(lambda: running(stored, stage), 180)
    kill(first.pid)
    await asyncio.to_thread(first.wait)
    workers()
    await audit(stored, job_id, receiver=receiver)
    assert (steps(stored, job_id), len(await stored.rows(Run))) == (ONCE, 1)


@pytest.mark.slow
@pytest.mark.parametrize("status", ["validating_files", "queued", "running"])
async def test_a_worker_killed_between_two_statuses_is_followed_by_another(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers, status: str
) -> None:
    stub_tasks(seconds="1")
    first, job_id = workers(), await begin(stored, receiver)

    async def reached() -> bool:
        job = await stored.get(job_id)
        return job.status == status and job.worker_id is not None

    await until(reached, 180)
    kill(first.pid)
    await asyncio.to_thread(first.wait)
    workers()
    await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE


@pytest.mark.slow
async def test_workers_killed_again_and_again_do_not_end_a_job_that_makes_progress(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="20")
    first, job_id = workers(), await begin(stored, receiver)
    for number in range(2, 9, 2):
        await until(lambda number=number: reached_step(stored, job_id, number), 180)
        kill(first.pid)
        await asyncio.to_thread(first.wait)
        first = workers()
    await audit(stored, job_id, receiver=receiver)
    assert (steps(stored, job_id), len(await stored.rows(Run))) == (ONCE, 1)


async def taken(world: World, job_id: str, fence: int) -> bool:
    """Whether another worker has claimed the job."""
    return (await world.get(job_id)).fence > fence


async def reached_step(world: World, job_id: str, number: int) -> Any:
    """Whether the job's row tells of this optimiser step."""
    return (((await world.get(job_id)).progress or {}).get("step") or 0) >= number
