"""What is cleared, when, and what stays."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from app.models import Worker
from app.worker import folder, presence
from app.worker.context import Context
from app.worker.housekeeping import sweep
from tests.app.worker.services import World

pytestmark = pytest.mark.db


def fill(world: World, job_id: str) -> folder.JobFolder:
    """A job's folder as a run leaves it."""
    home = folder.of(world.settings, job_id)
    for name in ("work/ab/cdef/.command.log", "work/ab/cdef/adapter/big", "train/checkpoint-5/x", "credentials"):
        path = home.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (home.train / "progress.jsonl").write_text("{}\n")
    return home


async def finish(world: World, job_id: str, status: str, hours: int) -> None:
    error = ", error = '{}'" if status == "failed" else ""
    async with world.database.transaction() as db:
        ago = "clock_timestamp() - make_interval(hours => :hours)"
        statement = f"update jobs set status = :status, finished_at = {ago}{error} where id = :id"
        await db.execute(text(statement), {"status": status, "hours": hours, "id": job_id})


def left(home: folder.JobFolder) -> set[str]:
    return {path.relative_to(home.root).as_posix() for path in home.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("status", "hours", "cleared"), [("succeeded", 25, True), ("succeeded", 1, False), ("failed", 25, False)]
)
async def test_a_work_folder_goes_after_its_retention(world: World, status: str, hours: int, cleared: bool) -> None:
    job_id = await world.job(await world.project())
    home = fill(world, job_id)
    await finish(world, job_id, status, hours)
    context = Context(world.settings, world.database, presence.myself(world.settings))
    assert await sweep(context) == ([job_id] if cleared else [])
    kept = {"work/ab/cdef/.command.log", "train/progress.jsonl"}
    whole = kept | {"work/ab/cdef/adapter/big", "train/checkpoint-5/x"}
    assert left(home) == (kept | {"swept"} if cleared else whole)
    assert await sweep(context) == []


async def test_a_job_that_goes_on_keeps_everything_and_strangers_are_not_touched(world: World) -> None:
    home = fill(world, await world.job(await world.project()))
    stranger = fill(world, "somebody-elses-folder")
    before = left(home), left(stranger)
    assert await sweep(Context(world.settings, world.database, presence.myself(world.settings))) == []
    assert (left(home), left(stranger)) == before


async def test_workers_gone_for_long_are_forgotten(world: World) -> None:
    async with world.database.transaction() as db:
        for name in ("old", "new"):
            db.add(Worker(id=name, host="h", pid=1, boot_id="b", pid_namespace="n", capabilities={}))
    async with world.database.transaction() as db:
        await db.execute(
            text("update workers set heartbeat_at = clock_timestamp() - interval '9 days' where id = 'old'")
        )
    await sweep(Context(world.settings, world.database, presence.myself(world.settings)))
    async with world.database.transaction() as db:
        assert (await db.execute(text("select id from workers"))).scalars().all() == ["new"]
