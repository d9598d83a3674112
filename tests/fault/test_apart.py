"""Trainings that share no disk with a worker: their state survives them, one trains at a time, and their token ends with their run."""

from __future__ import annotations

import asyncio
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.files.storage import connect
from app.jobs import lifecycle
from app.models import Checkpoint, Run, RunToken, TrainLease
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from finetune.mirror import Mirror
from finetune.progress import read_lines
from tests.app.worker.services import BUCKET, World, kill, until
from tests.fault.apart import apart, token, trainers
from tests.fault.audit import audit

pytestmark = [pytest.mark.fault, pytest.mark.timeout(1200)]

Behave = Callable[..., None]
PATIENCE = 240.0


@pytest.fixture
def world_apart(stored: World) -> Iterator[World]:
    with apart(stored) as made:
        yield made


async def saved(world: World, job_id: str) -> Any:
    """The mirror's record, once a checkpoint is in it."""
    try:
        found = await asyncio.to_thread(read, world, f"model/{job_id}/train/mirror.json")
    except LookupError:
        return None
    record = Mirror.model_validate_json(found)
    return record if record.folders("checkpoint-") else None


def read(world: World, key: str) -> bytes:
    """An object; LookupError if it is not there."""
    s3 = connect(world.settings)
    try:
        return bytes(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    except s3.exceptions.NoSuchKey as problem:
        raise LookupError(key) from problem


def steps(world: World, job_id: str) -> list[int]:
    """The steps that progress.jsonl tells, in order."""
    lines, _ = read_lines(folder.of(world.settings, job_id).train / "progress.jsonl")
    return [line["step"] for line in lines if line["event"] == "step"]


async def succeeded(world: World, job_id: str, at: int = 0) -> None:
    """The job ended well, once, with everything where it belongs and nothing left over. at: the step an older job had brought it to."""
    job = await until(lambda: world.is_over(job_id), PATIENCE)
    assert (job.status, job.error) == ("succeeded", None)
    await audit(world, job_id, seconds=PATIENCE)
    told = await world.messages(job_id)
    assert at == 10 or "Step 10/10: training loss 0.10" in told
    assert f"model/{job_id}/checkpoints/step-10/adapter_model.safetensors" in world.keys(f"model/{job_id}/")
    if at != 10:
        kept = {row.step_number: row.uri for row in await world.rows(Checkpoint)}
        assert kept[10] == f"s3://{BUCKET}/model/{job_id}/checkpoints/step-10/"
    assert process.members(label(job_id)) == []
    assert world.keys(f"model/{job_id}/train/") == []
    assert not folder.of(world.settings, job_id).access.exists()
    assert await world.rows(TrainLease) == []
    assert all(row.revoked_at for row in await world.rows(RunToken))


async def test_a_killed_training_goes_on_from_its_mirrored_checkpoint(world_apart: World, stub_tasks: Behave) -> None:
    world = world_apart
    stub_tasks(seconds="12")
    job_id = await world.job(await world.project())
    async with world.working():
        record = await until(lambda: saved(world, job_id), PATIENCE)
        home = folder.of(world.settings, job_id)
        assert stat.S_IMODE(home.access.stat().st_mode) == 0o600
        known = token(world, job_id)
        assert "checkpoint-5/adapter_model.safetensors" in {entry.path for entry in record.files}
        (trainer,) = trainers(job_id)
        kill(trainer)
        await succeeded(world, job_id)
    lines, _ = read_lines(home.train / "progress.jsonl")
    first, second = (line["resumed_from"] for line in lines if line["event"] == "start")
    assert (first, second % 5) == (None, 0)  # from a checkpoint that it had brought away
    assert second >= 5
    counted = Counter(steps(world, job_id))
    assert {step: counted[step] for step in range(1, 6)} == dict.fromkeys(range(1, 6), 1)
    assert sorted(counted) == list(range(1, 11))
    assert not (home.train / "checkpoint-5").exists()  # nothing reached the worker's disk but what was told
    holding = [path for path in home.root.rglob("*") if path.is_file() and known.encode() in path.read_bytes()]
    assert holding == []
    assert await asyncio.to_thread(ask, world, known) == 401


def ask(world: World, known: str) -> int:
    """What the internal routes answer a token."""
    headers = {"authorization": f"Bearer {known}"}
    return httpx.get(f"{world.settings.tasks_url}/internal/runs/mirror", headers=headers, trust_env=False).status_code


@pytest.mark.slow
async def test_a_pause_reaches_the_training_and_a_resume_goes_on_where_it_was(
    world_apart: World, stub_tasks: Behave
) -> None:
    world = world_apart
    stub_tasks(seconds="60")
    job_id = await world.job(await world.project())
    async with world.working():
        await until(lambda: trains(world, job_id), PATIENCE)
        first = token(world, job_id)
        await wish(world, job_id, pause=True)
        await until(lambda: has_status(world, job_id, "paused"), PATIENCE)
        assert await asyncio.to_thread(ask, world, first) == 401
        done = steps(world, job_id)
        stub_tasks(seconds="1")
        await wish(world, job_id, pause=False)
        await succeeded(world, job_id)
    assert 0 < len(done) < 10
    assert steps(world, job_id) == list(range(1, 11))
    assert len(await world.rows(Run)) == 2


@pytest.mark.slow
async def test_everything_killed_goes_on_from_the_mirror(world_apart: World, stub_tasks: Behave) -> None:
    world = world_apart
    stub_tasks(seconds="30")
    job_id = await world.job(await world.project())
    worker = world.worker_process()
    try:
        await until(lambda: saved(world, job_id), PATIENCE)
        kill(worker.pid)
        for member in process.members(label(job_id)):
            kill(member.pid)
    finally:
        worker.kill()
        await asyncio.to_thread(worker.wait)
    async with world.working():
        await succeeded(world, job_id)
    counted = Counter(steps(world, job_id))
    assert {step: counted[step] for step in range(1, 6)} == dict.fromkeys(range(1, 6), 1)


@pytest.mark.slow
async def test_a_cancel_leaves_nothing_of_the_mirror(world_apart: World, stub_tasks: Behave) -> None:
    world = world_apart
    stub_tasks(seconds="60")
    job_id = await world.job(await world.project())
    async with world.working():
        await until(lambda: saved(world, job_id), PATIENCE)
        known = token(world, job_id)
        await world.cancel(job_id)
        job = await until(lambda: world.is_over(job_id), PATIENCE)
    assert (job.status, world.keys(f"model/{job_id}/")) == ("cancelled", [])
    assert await asyncio.to_thread(ask, world, known) == 401


@pytest.mark.slow
async def test_a_retry_goes_on_from_the_mirror_of_the_job_that_failed(world_apart: World, stub_tasks: Behave) -> None:
    world = world_apart
    stub_tasks(fault="evaluate=internal_error")
    project = await world.project()
    old = await world.job(project)
    async with world.working():
        assert (await until(lambda: world.is_over(old), PATIENCE)).status == "failed"
    stub_tasks(fault="nothing=internal_error")
    new = await world.job(project)
    async with world.database.transaction() as db:
        (await lifecycle.lock(db, new)).retry_of = old
    async with world.working():
        await succeeded(world, new, at=10)
    lines, _ = read_lines(folder.of(world.settings, new).train / "progress.jsonl")
    assert [line["resumed_from"] for line in lines if line["event"] == "start"] == [None, 10]
    assert steps(world, new) == list(range(1, 11))


async def trains(world: World, job_id: str) -> bool:
    """Whether a step was told."""
    return bool(((await world.get(job_id)).progress or {}).get("step"))


async def has_status(world: World, job_id: str, status: str) -> bool:
    return (await world.get(job_id)).status == status


async def wish(world: World, job_id: str, *, pause: bool) -> None:
    """Ask for a pause, or to go on, as the API does it."""
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        if pause:
            job.pause_requested_at = await lifecycle.now(db)
            await lifecycle.wake(db, job_id)
        else:
            await lifecycle.resumed(db, job)
