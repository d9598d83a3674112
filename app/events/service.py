"""Events: the only history of a job. Recorded in the transaction of the fact; numbered per job without gaps."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Text, and_, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import BadRequest
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


async def last_of(db: AsyncSession, job_ids: list[str]) -> list[tuple[str, int, str]]:
    """Id, number of the last event, and status of each of these jobs."""
    query = select(Job.id, Job.last_seq, Job.status).where(Job.id == func.any(literal(job_ids, ARRAY(Text))))
    return [(row.id, row.last_seq, row.status) for row in await db.execute(query)]


async def behind(db: AsyncSession, job_id: str, seq: int, *, limit: int) -> list[Event]:
    """A job's events behind number `seq`, oldest first."""
    query = select(Event).where(Event.job_id == job_id, Event.seq > seq).order_by(Event.seq).limit(limit)
    return list((await db.execute(query)).scalars())


async def newer(db: AsyncSession, seen: dict[str, int]) -> list[Event]:
    """The events of several jobs behind the number that was `seen` of each, by job and number."""
    ids, numbers = literal([*seen], ARRAY(Text)), literal([*seen.values()], ARRAY(BigInteger))
    known = func.unnest(ids, numbers).table_valued("job_id", "seq", name="known").render_derived()
    query = select(Event).join(known, and_(Event.job_id == known.c.job_id, Event.seq > known.c.seq))
    return list((await db.execute(query.order_by(Event.job_id, Event.seq))).scalars())


async def number(db: AsyncSession, job: Job, *, last_event_id: str | None, after: str | None) -> int:
    """The number behind which a stream goes on.

    Args:
        last_event_id: What the client got last, as `Last-Event-ID`; it is newer than the address with its `after`.
        after: The id of an event.
    Raises:
        BadRequest: They name no event of this job.
    """
    if last_event_id:
        if not (last_event_id.isdecimal() and len(last_event_id) < 19 and int(last_event_id) <= job.last_seq):
            raise BadRequest(
                f"Last-Event-ID {last_event_id[:40]!r} is no event of this job: its last one is {job.last_seq}.",
                code="invalid_value",
                param="last-event-id",
            )
        return int(last_event_id)
    if after is None:
        return 0
    last = await db.get(Event, after)
    if last is None or last.job_id != job.id:
        raise unknown_cursor(after)
    return last.seq
