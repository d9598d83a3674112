"""Every pair of statuses is tried; fences hold; a terminal status never changes, not even under direct SQL."""

from __future__ import annotations

from itertools import product

import pytest
from openai import OpenAI
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from app.db import Database
from app.jobs import lifecycle
from app.jobs.lifecycle import NEXT, FenceLost, IllegalTransition, Status
from app.models import FINAL, Event, Job
from tests.app.jobs.factory import create, move, own, status_of

pytestmark = pytest.mark.db

REACHED = [status for status in Status if status != Status.VALIDATING]


@pytest.mark.parametrize(("here", "to"), list(product(Status, REACHED)), ids=lambda status: status.value)
async def test_a_pair_of_statuses_is_allowed_or_raises(client: OpenAI, db: Database, here: Status, to: Status) -> None:
    job_id = create(client)
    await move(db, job_id, here.value)
    if to in NEXT[here]:
        await transition(db, job_id, to)
        assert await status_of(db, job_id) == to
        return
    with pytest.raises(IllegalTransition):
        await transition(db, job_id, to)
    assert await status_of(db, job_id) == here


async def transition(db: Database, job_id: str, to: Status) -> None:
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        error = {"code": "internal_error", "message": "x", "param": None}
        calls = {
            Status.QUEUED: lambda: lifecycle.resumed(session, job) if job.status == "paused" else lifecycle.queued(session, job, fence=job.fence),
            Status.RUNNING: lambda: lifecycle.running(session, job, fence=job.fence),
            Status.PAUSED: lambda: lifecycle.paused(session, job, fence=job.fence),
            Status.SUCCEEDED: lambda: lifecycle.succeeded(session, job, fence=job.fence),
            Status.FAILED: lambda: lifecycle.failed(session, job, error, fence=job.fence),
            Status.CANCELLED: lambda: lifecycle.cancelled(session, job, fence=job.fence),
        }  # fmt: skip
        await calls[to]()


def test_every_status_says_where_it_leads_and_final_ones_lead_nowhere() -> None:
    assert set(NEXT) == set(Status)
    assert {status for status in Status if not NEXT[status]} == {Status(name) for name in FINAL}


@pytest.mark.parametrize("final", FINAL)
async def test_a_terminal_status_cannot_be_changed_by_direct_sql(client: OpenAI, db: Database, final: str) -> None:
    job_id = create(client)
    await move(db, job_id, final)
    with pytest.raises(IntegrityError, match="a terminal status never changes"):
        await set_status_by_hand(db, job_id)
    assert await status_of(db, job_id) == final


async def set_status_by_hand(db: Database, job_id: str) -> None:
    await by_hand(db, job_id, "update jobs set status = 'running', finished_at = null, error = null where id = :id")


async def by_hand(db: Database, job_id: str, statement: str) -> None:
    async with db.transaction() as session:
        await session.execute(text(statement), {"id": job_id})


@pytest.mark.parametrize("final", FINAL)
@pytest.mark.parametrize(
    "change",
    [
        'error = \'{"code": "another"}\'',
        "error = null",
        "finished_at = clock_timestamp()",
        "finished_at = null",
        "fine_tuned_model = 'ft:another'",
        "fine_tuned_model = null, finished_at = clock_timestamp()",
    ],
)
async def test_what_a_final_job_says_cannot_be_changed_by_direct_sql(
    client: OpenAI, db: Database, final: str, change: str
) -> None:
    job_id = create(client)
    await move(db, job_id, final)
    before = client.fine_tuning.jobs.retrieve(job_id)
    if change == "error = null" and final != "failed":
        await by_hand(db, job_id, f"update jobs set {change} where id = :id")
    else:
        with pytest.raises(IntegrityError, match="a terminal status never changes"):
            await by_hand(db, job_id, f"update jobs set {change} where id = :id")
    assert client.fine_tuning.jobs.retrieve(job_id) == before


async def test_what_belongs_to_no_end_can_still_be_written_and_a_final_job_be_deleted(
    client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    await move(db, job_id, "failed")
    await by_hand(db, job_id, "update jobs set logs_uri = 's3://logs/', last_seq = last_seq + 1 where id = :id")
    await by_hand(db, job_id, "delete from events where job_id = :id")
    await by_hand(db, job_id, "delete from jobs where id = :id")


async def test_a_write_with_an_old_fence_is_refused_whole(client: OpenAI, db: Database) -> None:
    job_id = create(client)
    await own(db, job_id)
    with pytest.raises(FenceLost):
        await queue_with_fence(db, job_id, 0)
    assert await status_of(db, job_id) == Status.VALIDATING


async def queue_with_fence(db: Database, job_id: str, fence: int) -> None:
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        await lifecycle.queued(session, job, fence=fence)


async def test_a_final_job_is_owned_by_nobody_and_has_one_terminal_event(client: OpenAI, db: Database) -> None:
    job_id = create(client)
    await own(db, job_id)
    await move(db, job_id, "failed")
    async with db.transaction() as session:
        job = (await session.execute(select(Job).where(Job.id == job_id))).scalar_one()
        ended = select(func.count()).where(Event.job_id == job_id, Event.message.startswith("The job failed"))
        assert (job.worker_id, job.lease_until, (await session.execute(ended)).scalar_one()) == (None, None, 1)


async def test_events_are_numbered_without_gaps(client: OpenAI, db: Database) -> None:
    job_id = create(client)
    await move(db, job_id, "succeeded")
    async with db.transaction() as session:
        numbers = (await session.execute(select(Event.seq).where(Event.job_id == job_id).order_by(Event.seq))).scalars()
        assert list(numbers) == list(range(1, 7))
