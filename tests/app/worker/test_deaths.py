"""A job whose workers die of it: counted while nothing is done between, and ended at the third."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from app.models import Job, Run, new_id
from app.worker import adopt, presence
from app.worker.claim import Claim
from app.worker.context import Context, Hand
from tests.app.worker.services import World

pytestmark = pytest.mark.db


@pytest.fixture
def context(world: World) -> Context:
    return Context(world.settings, world.database, presence.myself(world.settings))


async def ended_run(world: World) -> str:
    """A running job whose only run is over and not settled, as a worker leaves it that dies at the settling."""
    job_id = await world.job(await world.project(), status="running")
    job = await world.get(job_id)
    async with world.database.transaction() as db:
        run = Run(
            id=new_id("run_"), project_id=job.project_id, job_id=job_id, attempt=1, fence=1, profile="local", host="h"
        )
        run.session_uuid, run.folder, run.finished_at = "u", "/nowhere", job.created_at
        db.add(run)
    return job_id


async def taken_from(context: Context, job_id: str, worker: str | None) -> adopt.Situation | None:
    """What a worker is to do that took the job from another."""
    return await adopt.assess(context, Hand(Claim(job_id, 0, worker)))


async def test_a_job_that_ended_three_workers_fails(world: World, context: Context) -> None:
    job_id = await ended_run(world)
    for worker in ("one", "two"):
        assert isinstance(await taken_from(context, job_id, worker), adopt.Launch)
    assert await taken_from(context, job_id, "three") is None
    job = await world.get(job_id)
    assert (job.status, job.error["code"]) == ("failed", "crash_loop")
    assert (await world.messages(job_id)).count(adopt.TAKEN_OVER) == 3


async def test_what_was_done_between_starts_the_count_anew(world: World, context: Context) -> None:
    job_id = await ended_run(world)
    for number in range(6):
        async with world.database.transaction() as db:
            await db.execute(update(Job).where(Job.id == job_id).values(progress={"step": number // 2}))
        assert await taken_from(context, job_id, f"worker-{number}") is not None
    assert (await world.get(job_id)).status == "running"


async def test_a_worker_that_let_go_did_not_die(world: World, context: Context) -> None:
    job_id = await ended_run(world)
    for _ in range(4):
        assert isinstance(await taken_from(context, job_id, None), adopt.Launch)
    assert adopt.TAKEN_OVER not in await world.messages(job_id)
