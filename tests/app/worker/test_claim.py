"""Claims, leases and fences between workers, on a real Postgres."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import text

from app.jobs import lifecycle
from app.jobs.lifecycle import FenceLost
from app.models import Run, Worker, new_id
from app.worker import claim
from app.worker.claim import Claim, Claimant
from app.worker.outage import NEVER
from tests.app.worker.services import World

pytestmark = pytest.mark.db

ANN = Claimant("worker-ann", 30.0, "here", "boot", "ns", ["local"], 600.0)
BOB = replace(ANN, worker="worker-bob")


async def take(world: World, who: Claimant) -> Claim | None:
    async with world.database.transaction() as db:
        return await claim.claim_run(db, who)


async def sql(world: World, statement: str, **values: object) -> None:
    async with world.database.transaction() as db:
        await db.execute(text(statement), values)


async def start(world: World, mine: Claim) -> None:
    async with world.database.transaction() as db:
        await lifecycle.running(db, await lifecycle.lock(db, mine.job_id, fence=mine.fence), fence=mine.fence)


async def expire(world: World) -> None:
    await sql(
        world, "update jobs set lease_until = clock_timestamp() - interval '1 second' where worker_id is not null"
    )


async def test_many_workers_take_every_job_once(world: World) -> None:
    project = await world.project()
    jobs = [await world.job(project, status="queued") for _ in range(30)]
    names = [replace(ANN, worker=f"worker-{number}") for number in range(8)]

    async def drain(who: Claimant) -> list[str]:
        found = []
        while (taken := await take(world, who)) is not None:
            found.append(taken.job_id)
        return found

    taken = await asyncio.gather(*map(drain, names))
    assert Counter(job for found in taken for job in found) == Counter(jobs)


async def test_a_stale_worker_cannot_write(world: World) -> None:
    await world.job(await world.project(), status="queued")
    old = await take(world, ANN)
    await expire(world)
    new = await take(world, BOB)
    assert old is not None
    assert new == Claim(old.job_id, old.fence + 1, "worker-ann")
    with pytest.raises(FenceLost):
        await start(world, old)
    assert (await world.get(old.job_id)).status == "queued"


async def test_a_live_lease_is_left_alone(world: World) -> None:
    await world.job(await world.project(), status="queued")
    assert await take(world, ANN) is not None
    assert await take(world, BOB) is None


async def test_a_claim_whose_answer_was_lost_is_made_again_by_the_same_worker_and_is_no_takeover(world: World) -> None:
    job = await world.job(await world.project(), status="queued")
    lost = await take(world, replace(ANN, held=[]))
    assert lost is not None
    assert await take(world, replace(ANN, held=[job])) is None
    assert await take(world, replace(BOB, held=[])) is None
    assert await take(world, replace(ANN, held=[])) == Claim(job, lost.fence + 1, None)


async def test_an_owner_renews_an_expired_lease_while_its_fence_stands(world: World) -> None:
    await world.job(await world.project(), status="queued")
    mine = await take(world, ANN)
    assert mine is not None
    await expire(world)
    async with world.database.transaction() as db:
        assert await claim.renew(db, "worker-ann", 30.0, [(mine.job_id, mine.fence)]) == {mine.job_id}
    assert await take(world, BOB) is None


async def test_nobody_takes_over_right_after_an_outage(world: World) -> None:
    await world.job(await world.project(), status="queued")
    assert await take(world, ANN) is not None
    await expire(world)
    assert await take(world, replace(BOB, take_over_until=NEVER)) is None
    assert await take(world, BOB) is not None


async def test_the_lease_of_a_worker_known_to_be_dead_is_not_waited_for(world: World) -> None:
    await world.job(await world.project(), status="queued")
    assert await take(world, ANN) is not None
    taken = await take(world, replace(BOB, dead=["worker-ann"], take_over_until=NEVER))
    assert taken is not None
    assert taken.previous == "worker-ann"


async def test_priority_goes_before_fairness_and_fairness_before_age(world: World) -> None:
    busy, idle = await world.project("busy"), await world.project("idle")
    await world.job(busy, status="running")
    await expire(world)
    await sql(world, "update jobs set worker_id = 'someone', lease_until = clock_timestamp() + interval '1 hour'")
    first = await world.job(busy, status="queued")
    second = await world.job(idle, status="queued")
    third = await world.job(busy, status="queued", execution={"priority": 5})
    order = [await take(world, ANN) for _ in range(3)]
    assert [taken.job_id for taken in order if taken] == [third, second, first]


async def test_a_released_run_is_taken_before_a_waiting_job(world: World) -> None:
    project = await world.project()
    await world.job(project, status="queued", execution={"priority": 9})
    started = await world.job(project, status="running")
    taken = await take(world, ANN)
    assert taken is not None
    assert (taken.job_id, taken.previous) == (started, None)
    async with world.database.transaction() as db:
        await claim.release(db, taken, "worker-ann")
    assert (await world.get(started)).worker_id is None


async def test_a_job_for_another_profile_is_left_for_a_worker_that_has_it(world: World) -> None:
    await world.job(await world.project(), status="queued", execution={"profile": "slurm"})
    assert await take(world, ANN) is None
    assert await take(world, replace(ANN, profiles=["local", "slurm"])) is not None


@pytest.mark.parametrize(
    ("host", "boot", "seen", "taken"),
    [
        ("here", "boot", 0, True),
        ("here", "an earlier boot", 0, True),
        ("elsewhere", "x", 30, False),
        ("elsewhere", "x", 700, True),
    ],
)
async def test_a_run_of_another_machine_is_resumed_only_when_that_was_silent_for_long(
    world: World, host: str, boot: str, seen: int, taken: bool
) -> None:
    project = await world.project()
    job_id = await world.job(project, status="running")
    async with world.database.transaction() as db:
        run = Run(id=new_id("run_"), project_id=project, job_id=job_id, attempt=1, fence=1, profile="local", host=host)
        run.session_uuid, run.folder, run.boot_id, run.pid_namespace = "u", "/x", boot, "ns"
        db.add(run)
        db.add(Worker(id="w", host=host, pid=1, boot_id=boot, pid_namespace="ns", capabilities={}))
    await sql(world, "update workers set heartbeat_at = clock_timestamp() - make_interval(secs => :seen)", seen=seen)
    assert (await take(world, ANN) is not None) is taken


async def test_validation_and_run_are_two_claims(world: World) -> None:
    job_id = await world.job(await world.project())
    assert await take(world, ANN) is None
    async with world.database.transaction() as db:
        first = await claim.claim_validation(db, ANN)
    assert first == Claim(job_id, 1, None)
    async with world.database.transaction() as db:
        await lifecycle.queued(db, await lifecycle.lock(db, job_id), fence=1)
    assert await take(world, BOB) == Claim(job_id, 2, None)
