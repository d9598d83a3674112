"""Folders of jobs: what is cleared, when, what is kept on S3 before, and how a job paused for long still goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from app.files.storage import connect
from app.housekeeping.sweep import sweep
from app.jobs import lifecycle
from app.models import Run, Stage, new_id
from app.worker import folder
from tests.app.worker.services import BUCKET, World, until

pytestmark = pytest.mark.db


async def fill(world: World, job_id: str) -> folder.JobFolder:
    """A job's folder as a run leaves it, and the rows that tell of it."""
    home = folder.of(world.settings, job_id)
    files = {
        "work/ab/cdef/.command.log": "training\n", "work/ab/cdef/adapter/big": "x", "train/checkpoint-5/x": "x",
        "credentials": "secret", "run-1/stdout.log": "N E X T F L O W\n", "run-1/trace.tsv": "task_id\n",
        "train/progress.jsonl": "{}\n",
    }  # fmt: skip
    for name, content in files.items():
        path = home.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        run = Run(
            id=new_id("run_"), project_id=job.project_id, job_id=job_id, attempt=1, fence=0, profile="local",
            session_uuid="s", folder=str(home.run(1)), host="h",
        )  # fmt: skip
        db.add(run)
        await db.flush()
        stage = Stage(
            id=new_id("stage_"), project_id=job.project_id, job_id=job_id, run_id=run.id, process="FINE_TUNE",
            task_hash="ab/cdef", attempt=1, status="succeeded", workdir=str(home.work / "ab" / "cdef"),
        )  # fmt: skip
        db.add(stage)
    return home


async def end(world: World, job_id: str, status: str, hours: float) -> None:
    """The job in a status, since so many hours."""
    column = "paused_at" if status == "paused" else "finished_at"
    error = ", error = '{}'" if status == "failed" else ""
    statement = (
        f"update jobs set status = :status, {column} = clock_timestamp() - make_interval(hours => :hours){error}"
    )
    async with world.database.transaction() as db:
        await db.execute(text(f"{statement} where id = :id"), {"status": status, "hours": hours, "id": job_id})


def left(home: folder.JobFolder) -> set[str]:
    return {path.relative_to(home.root).as_posix() for path in home.root.rglob("*") if path.is_file()}


async def swept(world: World, **more: Any) -> str:
    return "\n".join(await sweep(world.settings, world.database, **more))


@pytest.mark.parametrize(
    ("status", "hours", "cleared"),
    [("succeeded", 25, True), ("succeeded", 1, False), ("cancelled", 25, True), ("failed", 25, False), ("failed", 169, True)],
)  # fmt: skip
async def test_a_folder_goes_after_its_retention(stored: World, status: str, hours: int, cleared: bool) -> None:
    job_id = await stored.job(await stored.project())
    home = await fill(stored, job_id)
    await end(stored, job_id, status, hours)
    said = await swept(stored)
    assert (home.root.exists(), job_id in said) == (not cleared, cleared)
    assert not (home.root / "credentials").exists(), "whatever the retention, keys go at the end"


async def test_logs_trace_and_reports_are_on_s3_before(stored: World) -> None:
    project = await stored.project()
    job_id = await stored.job(project)
    await fill(stored, job_id)
    await end(stored, job_id, "succeeded", 25)
    await swept(stored)
    assert (await stored.get(job_id)).logs_uri == f"s3://{BUCKET}/files/{project}/logs/{job_id}/"
    below = f"files/{project}/logs/{job_id}/"

    def read(key: str) -> str:
        return str(connect(stored.settings).get_object(Bucket=BUCKET, Key=key)["Body"].read().decode())

    index = json.loads(read(f"{below}index.json"))
    assert {row["name"]: (row["stage"], read(row["key"])) for row in index} == {
        "run-1/stdout.log": (None, "N E X T F L O W\n"),
        "run-1/trace.tsv": (None, "task_id\n"),
        "run-1/FINE_TUNE-ab-cdef/command.log": ("FINE_TUNE", "training\n"),
        "train/progress.jsonl": (None, "{}\n"),
    }


async def test_while_s3_is_away_the_folder_stays(world: World) -> None:
    job_id = await world.job(await world.project())
    home = await fill(world, job_id)
    await end(world, job_id, "succeeded", 25)
    assert "could not be kept" in await swept(world)
    assert "work/ab/cdef/.command.log" in left(home)


async def test_a_half_uploaded_result_of_a_failed_job_goes_and_a_whole_one_stays(stored: World) -> None:
    project = await stored.project()
    half, whole = await stored.job(project), await stored.job(project)
    stored.put(f"model/{half}/adapter/x", b"x")
    for name in ("adapter/x", "manifest.json"):
        stored.put(f"model/{whole}/{name}", b"x")
    for job_id in (half, whole):
        await fill(stored, job_id)
        await end(stored, job_id, "failed", 169)
    await swept(stored)
    assert stored.keys(f"model/{half}/") == []
    assert len(stored.keys(f"model/{whole}/")) == 2


async def test_a_failed_job_that_waits_for_its_retry_keeps_its_checkpoints(stored: World) -> None:
    project = await stored.project()
    old, new = await stored.job(project), await stored.job(project)
    home = await fill(stored, old)
    await end(stored, old, "failed", 169)
    async with stored.database.transaction() as db:
        (await lifecycle.lock(db, new)).retry_of = old
    await swept(stored)
    assert home.root.exists()
    await end(stored, new, "cancelled", 0)
    await swept(stored)
    assert not home.root.exists()


async def test_a_job_that_goes_on_keeps_everything_and_strangers_are_not_touched(stored: World) -> None:
    home = await fill(stored, await stored.job(await stored.project()))
    stranger = stored.settings.runs / "somebody-elses-folder" / "file"
    stranger.parent.mkdir()
    stranger.write_text("x")
    before = left(home)
    await swept(stored)
    assert (left(home), stranger.exists()) == (before, True)


async def test_a_dry_run_tells_and_changes_nothing(stored: World) -> None:
    job_id = await stored.job(await stored.project())
    home = await fill(stored, job_id)
    await end(stored, job_id, "succeeded", 25)
    assert f"Would clear 1 job folder: {job_id}." in await swept(stored, dry_run=True)
    assert "work/ab/cdef/adapter/big" in left(home)
    assert (await stored.get(job_id)).logs_uri is None


async def test_a_job_paused_for_long_keeps_its_logs_and_checkpoints_and_says_so_once(stored: World) -> None:
    job_id = await stored.job(await stored.project())
    home = await fill(stored, job_id)
    await end(stored, job_id, "paused", 29 * 24)
    assert await swept(stored) == ""
    await end(stored, job_id, "paused", 31 * 24)
    await swept(stored)
    await swept(stored)
    assert {"work/ab/cdef/.command.log", "train/checkpoint-5/x", "train/progress.jsonl", "swept"} <= left(home)
    assert "work/ab/cdef/adapter/big" not in left(home)
    told = [message for message in await stored.messages(job_id) if "paused for 31 days" in message]
    assert len(told) == 1


@pytest.mark.slow
async def test_a_job_paused_for_long_goes_on_from_its_checkpoint_in_a_new_session(
    stored: World, stub_tasks: Callable[..., None]
) -> None:
    stub_tasks(seconds="3")
    job_id = await stored.job(await stored.project())
    home = folder.of(stored.settings, job_id)

    async def saved() -> bool:
        return (home.train / "checkpoint-5").is_dir()

    async with stored.working():
        await until(saved, 60)
        folder.ask_trainer(home, "pause")
        await until(lambda: paused(stored, job_id), 60)
    await end(stored, job_id, "paused", 31 * 24)
    await swept(stored)
    async with stored.database.transaction() as db:
        await lifecycle.resumed(db, await lifecycle.lock(db, job_id))
    async with stored.working():
        job = await until(lambda: stored.is_over(job_id), 60)
    runs = await stored.rows(Run)
    assert (job.status, job.error) == ("succeeded", None)
    assert len({run.session_uuid for run in runs}) == 2
    lines = [json.loads(line) for line in (home.train / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, 11))


async def paused(world: World, job_id: str) -> bool:
    """Whether the job is paused, once its trainer has saved as it was asked to."""
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        if job.pause_requested_at is None:
            job.pause_requested_at = await lifecycle.now(db)
            await lifecycle.wake(db, job_id)
        return job.status == "paused"
