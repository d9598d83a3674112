"""Cancel, pause and an end of time, in every state and in races with completion: what was accepted comes true, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.models import Run, Stage
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, kill, until
from tests.fault.asking import Asks, asking, begin
from tests.fault.audit import audit, lines_of
from tests.fault.scene import ONCE, Behave, Workers, running, steps, trainer_of

pytestmark = pytest.mark.fault

PROCESSES = {
    "download": "DOWNLOAD_DATA",
    "fetch": "FETCH_MODEL",
    "prepare": "PREPARE_DATA",
    "train": "FINE_TUNE",
    "evaluate": "EVALUATE",
    "upload": "UPLOAD_MODEL",
}


@pytest_asyncio.fixture
async def asks(stored: World, receiver: Receiver) -> AsyncIterator[Asks]:
    async with asking(stored) as made:
        yield made


async def lands(world: World, step: str) -> None:
    """Wait until a task of this step runs."""
    await until(lambda: running(world, PROCESSES[step]), 60)


def slowly(stub_tasks: Behave, step: str) -> None:
    """Let one step take long enough to be met."""
    stub_tasks(**({"seconds": "8"} if step == "train" else {"slow": f"{step}=5"}))


async def test_paused_in_the_middle_of_a_training_it_goes_on_where_it_was(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks
) -> None:
    stub_tasks(seconds="4")
    job_id = await begin(stored, receiver)
    async with stored.working():
        await asks.steps(job_id, 3)
        assert [await asks.status(job_id, "pause") for _ in range(2)] == ["running", "running"]
        paused = await asks.becomes(job_id, "paused", seconds=30)
        assert (paused.worker_id, paused.finished_at, process.members(label(job_id))) == (None, None, [])
        assert [await asks.status(job_id, action) for action in ("pause", "resume", "resume")][0::2] == [
            "paused",
            "queued",
        ]
        await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE
    told = await stored.messages(job_id)
    (again,) = [message for message in told if message.startswith("Training goes on")]
    order = ["Pause requested", "Fine-tuning job paused", "Fine-tuning job resumed, moving job to queued state", again]
    assert [message for message in told if message in order] == order
    assert [(run.attempt, run.finished_at is not None) for run in await stored.rows(Run)] == [(1, True), (2, True)]
    assert {stage.status for stage in await stored.rows(Stage)} == {"succeeded", "cached", "aborted"}


async def test_a_cancel_that_races_the_completion_leaves_all_or_nothing(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks
) -> None:
    """The cancel comes when the result has just been uploaded."""
    job_id = await begin(stored, receiver)
    async with stored.working():

        async def uploaded() -> bool:
            return f"model/{job_id}/manifest.json" in await asyncio.to_thread(stored.keys, f"model/{job_id}/")

        await until(uploaded, 60)
        answer = await asks(job_id, "cancel")
        found = await audit(stored, job_id, receiver=receiver, ends=("succeeded", "cancelled"))
    expected = {200: "cancelled", 400: "succeeded"}
    assert found[job_id].status == expected[answer.status_code]


@pytest.mark.slow
@pytest.mark.parametrize("step", list(PROCESSES))
async def test_cancelled_at_a_stage_nothing_is_left(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks, step: str
) -> None:
    slowly(stub_tasks, step)
    job_id = await begin(stored, receiver)
    async with stored.working():
        await lands(stored, step)
        await asks.status(job_id, "cancel")
        await audit(stored, job_id, receiver=receiver, ends=("cancelled",))


@pytest.mark.slow
@pytest.mark.parametrize("step", list(PROCESSES))
async def test_paused_at_a_stage_it_goes_on_with_what_was_done(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks, step: str
) -> None:
    slowly(stub_tasks, step)
    job_id = await begin(stored, receiver)
    async with stored.working():
        await lands(stored, step)
        await asks.status(job_id, "pause")
        await asks.becomes(job_id, "paused", seconds=40)
        await audit(stored, job_id, ends=("paused",))
        await asks.status(job_id, "resume")
        await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE


@pytest.mark.slow
@pytest.mark.parametrize("step", list(PROCESSES))
async def test_cancelled_while_it_is_paused_nothing_is_left(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks, step: str
) -> None:
    slowly(stub_tasks, step)
    job_id = await begin(stored, receiver)
    async with stored.working():
        await lands(stored, step)
        await asks.status(job_id, "pause")
        await asks.becomes(job_id, "paused", seconds=40)
        await asyncio.to_thread(stored.put, f"model/{job_id}/adapter/half", b"x")
        assert await asks.status(job_id, "cancel") == "cancelled"
        await audit(stored, job_id, receiver=receiver, ends=("cancelled",))


@pytest.mark.slow
async def test_paused_while_its_files_are_checked_it_is_never_launched(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks
) -> None:
    job_id = await begin(stored, receiver)
    assert await asks.status(job_id, "pause") == "validating_files"
    async with stored.working():
        await asks.becomes(job_id, "paused")
        await asyncio.sleep(1)
        assert await stored.rows(Run) == []
        await asks.status(job_id, "resume")
        await audit(stored, job_id, receiver=receiver)


@pytest.mark.slow
async def test_a_pause_withdrawn_lets_the_training_go_on(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks
) -> None:
    stub_tasks(seconds="6")
    job_id = await begin(stored, receiver)
    async with stored.working():
        for least in (1, 3, 5):
            await asks.steps(job_id, least)
            await asks.status(job_id, "pause")
            await asyncio.sleep(0.2 * least)
            await asks.status(job_id, "resume")
        await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE
    assert "The pipeline was lost; it is started again from what it had done." not in await stored.messages(job_id)


@pytest.mark.slow
async def test_a_worker_killed_while_a_pause_is_under_way_leaves_it_to_the_next(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, asks: Asks
) -> None:
    stub_tasks(seconds="10")
    first, job_id = workers(), await begin(stored, receiver)
    await asks.steps(job_id, 2)
    await asks.status(job_id, "pause")
    kill(first.pid)
    await asyncio.to_thread(first.wait)
    workers()
    await asks.becomes(job_id, "paused", seconds=60)
    await asks.status(job_id, "resume")
    await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE


@pytest.mark.slow
async def test_a_training_that_does_not_save_in_time_is_ended_and_goes_on_from_its_last_checkpoint(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks
) -> None:
    stub_tasks(seconds="10")
    job_id = await begin(stored, receiver)
    async with stored.working(pause_timeout=2.0):
        await asks.steps(job_id, 7)
        os.kill(trainer_of(job_id).pid, signal.SIGSTOP)
        await asks.status(job_id, "pause")
        await asks.becomes(job_id, "paused", seconds=90)
        assert process.members(label(job_id)) == []
        await asks.status(job_id, "resume")
        await audit(stored, job_id, receiver=receiver)
    done = steps(stored, job_id)
    assert {step: done[step] for step in range(1, 6)} == dict.fromkeys(range(1, 6), 1)
    assert max(done.values()) == 2


@pytest.mark.slow
async def test_a_paused_job_gives_its_slot_to_another(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks
) -> None:
    stub_tasks(seconds="4")
    first = await begin(stored, receiver)
    async with stored.working(worker_slots=1):
        await asks.steps(first, 2)
        second = await stored.job((await stored.get(first)).project_id)
        await asks.status(first, "pause")
        await audit(stored, second)
        assert (await stored.get(first)).status == "paused"
        await asks.status(first, "resume")
        await audit(stored, first, receiver=receiver)


async def last(world: World, job_id: str, event: str) -> dict[str, Any]:
    lines = lines_of(folder.of(world.settings, job_id).train / "progress.jsonl")
    return [line for line in lines if line["event"] == event][-1]


@pytest.mark.slow
async def test_a_training_that_ran_too_long_fails_and_its_retry_goes_on_from_its_checkpoint(
    stored: World, stub_tasks: Behave, receiver: Receiver, asks: Asks
) -> None:
    stub_tasks(seconds="8")
    job_id = await begin(stored, receiver, execution={"max_runtime_seconds": 5})
    async with stored.working():
        failed = (await audit(stored, job_id, receiver=receiver, ends=("failed",)))[job_id]
        assert failed.error is not None
        assert (failed.error["code"], failed.error["param"]) == (
            "max_runtime_exceeded",
            "execution.max_runtime_seconds",
        )
        saved = [(await last(stored, job_id, "checkpoint"))["step"]]
        chain = [job_id]
        while (await stored.get(chain[-1])).status == "failed":
            chain.append((await asks(chain[-1], "retry")).json()["id"])
            await audit(stored, chain[-1], ends=("failed", "succeeded"))
            saved.append((await last(stored, chain[-1], "checkpoint"))["step"])
            assert saved[-1] > saved[-2]
    assert 1 <= saved[0] < saved[-1] == 10
    assert (await last(stored, chain[1], "start"))["resumed_from"] == saved[0]
    assert steps(stored, chain[-1]) == ONCE
    told = await stored.messages(chain[1])
    assert f"Training goes on from step {saved[0]} of 10" in told
    assert [message for message in told if message.startswith("Step 1/10")] == []
