"""kill -9 of Nextflow, of the training, of both, of everything: what was done is not done again, and the rest is."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from app.models import Run, Stage
from app.nextflow import process
from app.worker.launch import label
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, kill, until
from tests.fault.audit import audit
from tests.fault.scene import ONCE, Behave, Workers, begin, head_of, running, saved, steps, trainer_of
from tests.fault.trainers import Trainers

pytestmark = pytest.mark.fault


async def test_a_training_outlives_its_nextflow_and_is_not_repeated(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    workers()
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    kill((await head_of(stored)).pid)
    await audit(stored, job_id, receiver=receiver)
    assert steps(stored, job_id) == ONCE
    assert [run.exit_status for run in await stored.rows(Run)] == [-signal.SIGKILL, 0]
    found = {(stage.process, stage.status) for stage in await stored.rows(Stage)}
    assert {(name, "cached") for name in ("DOWNLOAD_DATA", "FETCH_MODEL", "PREPARE_DATA")} <= found


async def test_after_everything_was_killed_the_training_goes_on_from_its_checkpoint(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    first, job_id = workers(), await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    kill(first.pid)
    for member in process.members(label(job_id)):
        kill(member.pid)
    await asyncio.to_thread(first.wait)
    workers()
    await audit(stored, job_id, receiver=receiver)
    counted = steps(stored, job_id)
    assert {step: counted[step] for step in range(1, 6)} == dict.fromkeys(range(1, 6), 1)
    assert sorted(counted) == list(range(1, 11))


@pytest.mark.slow
async def test_a_training_that_was_killed_is_tried_again_from_its_checkpoint(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    workers()
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    kill(trainer_of(job_id).pid)
    await audit(stored, job_id, receiver=receiver)
    assert (sorted(steps(stored, job_id)), len(await stored.rows(Run))) == (list(range(1, 11)), 1)


@pytest.mark.slow
async def test_nextflow_and_the_training_killed_together_go_on_from_the_checkpoint(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    workers()
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    head, trainer = await head_of(stored), trainer_of(job_id)
    kill(head.pid)
    kill(trainer.pid)
    await audit(stored, job_id, receiver=receiver)
    assert sorted(steps(stored, job_id)) == list(range(1, 11))


@pytest.mark.slow
async def test_the_shim_killed_alone_does_not_lose_the_training(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="5")
    workers()
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    (run,) = await stored.rows(Run)
    kill(run.pid)
    await audit(stored, job_id, receiver=receiver)
    assert sorted(steps(stored, job_id)) == list(range(1, 11))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["DOWNLOAD_DATA", "FETCH_MODEL", "PREPARE_DATA", "EVALUATE", "UPLOAD_MODEL"])
@pytest.mark.parametrize("with_tasks", [False, True])
async def test_nextflow_killed_in_any_other_stage_is_started_again(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers,
    stage: str, with_tasks: bool,
) -> None:  # fmt: skip
    stub_tasks(seconds="1", slow=f"{stage.partition('_')[0].lower()}=4")
    workers()
    job_id = await begin(stored, receiver)
    await until(lambda: running(stored, stage), 180)
    head = await head_of(stored)
    members = process.members(label(job_id)) if with_tasks else [head]
    for member in members:
        with contextlib.suppress(ProcessLookupError):  # some go with those that were killed before them
            kill(member.pid)
    await audit(stored, job_id, receiver=receiver)
    assert (steps(stored, job_id), len(await stored.rows(Run))) == (ONCE, 2)
