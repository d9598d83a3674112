"""Events: the only history of a job. Recorded in the transaction of the fact; numbered per job without gaps."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Event, Job, new_id
from app.pages import cut, unknown_cursor


async def record(
    db: AsyncSession,
    job: Job,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> Event:
    """Add one event to a job's history.

    The number is taken from the job's row in the event's own transaction: the row lock makes writers wait for each other, so
    a reader never sees 6 before 5.

    Args:
        db: The transaction of the fact itself.
        job: Whose history.
        message: A sentence a user reads.
        level: info, warn or error.
        type: message or metrics.
        data: Figures behind the sentence.
    """
    await db.flush()
    seq = (
        await db.execute(
            update(Job)
            .where(Job.id == job.id)
            .values(last_seq=Job.last_seq + 1)
            .returning(Job.last_seq)
            .execution_options(synchronize_session=False)
        )
    ).scalar_one()
    event = Event(
        id=new_id("ftevent-"),
        project_id=job.project_id,
        job_id=job.id,
        seq=seq,
        level=level,
        type=type,
        message=message,
        data=data,
    )
    db.add(event)
    await db.flush()
    await db.execute(text("select pg_notify('llamaflow_events', :id)"), {"id": job.id})
    return event


async def listed(db: AsyncSession, job: Job, *, after: str | None, limit: int) -> tuple[list[Event], bool]:
    """A page of a job's events, newest first, and whether there are more; `after` is the id of the last one seen."""
    query = select(Event).where(Event.job_id == job.id)
    if after is not None:
        last = await db.get(Event, after)
        if last is None or last.job_id != job.id:
            raise unknown_cursor(after)
        query = query.where(Event.seq < last.seq)
    newest = query.order_by(Event.seq.desc()).limit(limit + 1)
    return cut((await db.execute(newest)).scalars().all(), limit)
