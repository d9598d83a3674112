"""A full disk, made by the limit on the size of a file that every process may have: the job says so, the worker lives on."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from finetune import stub
from finetune.steps import FetchStep, ModelSource
from tests.app.worker.services import World, until
from tests.fault.audit import audit
from tests.fault.scene import Behave, Workers, head_of, trainer_of

pytestmark = pytest.mark.fault


def full(pid: int, size: int) -> None:
    """From now on no file of a process may grow beyond so many bytes: as on a full disk, writing fails."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))


def empty(pid: int) -> None:
    """There is room again."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


def told(world: World, job_id: str) -> Callable[[], Awaitable[bool]]:
    """Whether the training has told a step."""

    async def look() -> bool:
        return bool(((await world.get(job_id)).progress or {}).get("step"))

    return look


async def test_a_disk_that_fills_up_under_a_training_fails_its_job_and_the_worker_lives(
    stored: World, stub_tasks: Behave, workers: Workers
) -> None:
    stub_tasks(seconds="4")
    worker = workers()
    project = await stored.project()
    job_id = await stored.job(project)
    await until(told(stored, job_id), 240)
    full(trainer_of(job_id).pid, 1)
    job = (await audit(stored, job_id, seconds=120, ends=("failed",)))[job_id]
    assert job.error is not None
    assert job.error["code"] == "disk_full"
    assert "The disk is full" in job.error["message"]
    assert "LLAMAFLOW_RUNS_DIR" in job.error["message"]
    assert worker.poll() is None


@pytest.mark.slow
async def test_a_disk_that_is_full_at_the_launch_fails_the_job_and_with_room_again_the_next_one_runs(
    stored: World, stub_tasks: Behave, workers: Workers
) -> None:
    stub_tasks(seconds="0")
    worker = workers()
    project = await stored.project()
    await until(lambda: registered(stored), 120)
    full(worker.pid, 0)
    job_id = await stored.job(project)
    job = await until(lambda: stored.is_over(job_id), 120)
    assert (job.status, job.error["code"]) == ("failed", "disk_full")
    assert worker.poll() is None
    empty(worker.pid)
    await audit(stored, await stored.job(project), seconds=240)


async def registered(world: World) -> bool:
    async with world.database.transaction() as db:
        return bool((await db.execute(text("select count(*) from workers"))).scalar_one())


@pytest.mark.slow
async def test_a_disk_that_fills_up_under_nextflow_fails_the_job_or_is_got_over(
    stored: World, stub_tasks: Behave, workers: Workers
) -> None:
    stub_tasks(seconds="4")
    worker = workers()
    job_id = await stored.job(await stored.project())
    await until(told(stored, job_id), 240)
    full((await head_of(stored)).pid, 1)
    job = (await audit(stored, job_id, seconds=120, fetches=2, ends=("failed", "succeeded")))[job_id]
    assert job.error is None or job.error["code"] == "disk_full", job.error
    assert worker.poll() is None


@pytest.mark.slow
async def test_a_disk_too_small_for_the_dataset_fails_its_download(
    stored: World, workers: Workers, tmp_path: Path
) -> None:
    base = ModelSource(id="tiny", kind="path", location=str(tmp_path / "made" / "base"))
    (tmp_path / "made").mkdir()
    stub.WORK["fetch"](FetchStep(model=base), {}, tmp_path / "made")
    (tmp_path / "made" / "base" / "config.json").write_text('{"model_type": "llama"}')
    row = b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "%s"}]}\n' % (b"x" * 900)
    await asyncio.to_thread(stored.put, "large.jsonl", row * 24_000)
    worker = workers(stub_run=False)
    await until(lambda: registered(stored), 120)
    full(worker.pid, 16 << 20)
    job_id = await stored.job(await stored.project(), training_file="s3://llamaflow-data/large.jsonl")
    async with stored.database.transaction() as db:
        await db.execute(text("update jobs set base = :base"), {"base": base.model_dump_json()})
    job = await until(lambda: stored.is_over(job_id), 240)
    assert (job.status, job.error["code"]) == ("failed", "disk_full"), job.error
    assert worker.poll() is None
    assert process.members(label(job_id)) == []
    kept = stored.settings.cache / "datasets"
    assert [path for path in kept.rglob("*") if path.is_file()] == [], "no half dataset stays in the cache"


@pytest.mark.slow
async def test_a_log_line_of_a_hundred_megabytes_neither_stops_the_job_nor_fills_the_workers_memory(
    stored: World, stub_tasks: Behave, workers: Workers
) -> None:
    stub_tasks(seconds="0", line="100000000")
    worker = workers()
    job_id = await stored.job(await stored.project())
    await audit(stored, job_id, seconds=120)
    assert peak(worker.pid) < 700 << 20
    logs = folder.of(stored.settings, job_id).work.glob("*/*/.command.log")
    assert max(path.stat().st_size for path in logs) > 100_000_000


@pytest.mark.slow
async def test_a_task_that_fails_behind_such_a_line_fails_with_its_own_sentence(
    stored: World, stub_tasks: Behave, workers: Workers
) -> None:
    stub_tasks(seconds="0", line="100000000", fault="train=loss_diverged")
    worker = workers()
    job_id = await stored.job(await stored.project())
    job = (await audit(stored, job_id, seconds=120, ends=("failed",)))[job_id]
    assert job.error is not None
    assert job.error["code"] == "loss_diverged"
    assert worker.poll() is None


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
