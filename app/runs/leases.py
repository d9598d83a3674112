"""Who trains where no lock can be shared through a disk: one holder a job, by the database's clock.

A holder that has not renewed in time stays the holder until another one takes the lease; what it sends after that is refused.
"""

from __future__ import annotations

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Conflict
from app.models import TrainLease


async def take(
    db: AsyncSession, job_id: str, train_key: str, holder: str, seconds: float, *, renew: bool = False
) -> bool:
    """Become or stay the one who trains a job.

    Args:
        db: The transaction.
        job_id: Whose training; it has one holder, whatever the train key.
        train_key: What is trained.
        holder: The asker: a process, by a name of its own.
        seconds: From now.
        renew: The asker trains already: it must not begin anew where another one has trained meanwhile.
    Returns:
        False while another holder's lease runs; to a renewal also when another one had it since.
    """
    await db.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"train:{job_id}"})
    of_job, foreign = TrainLease.job_id == job_id, TrainLease.holder != holder
    alive = select(TrainLease.holder).where(of_job, foreign, TrainLease.lease_until > func.clock_timestamp())
    if (await db.execute(alive)).first() is not None:
        return False
    if renew and (await db.execute(select(TrainLease.holder).where(of_job, ~foreign))).first() is None:
        return False
    await db.execute(delete(TrainLease).where(of_job, foreign | (TrainLease.train_key != train_key)))
    until = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    ours = insert(TrainLease).values(job_id=job_id, train_key=train_key, holder=holder, lease_until=until)
    await db.execute(ours.on_conflict_do_update(index_elements=["job_id", "train_key"], set_={"lease_until": until}))
    return True


async def release(db: AsyncSession, job_id: str, holder: str) -> None:
    """Give the lease back; nothing happens if another one has it."""
    await db.execute(delete(TrainLease).where(TrainLease.job_id == job_id, TrainLease.holder == holder))


async def insist(db: AsyncSession, job_id: str, holder: str) -> None:
    """Make sure that `holder` trains the job, and stays the one until the transaction has ended.

    Raises:
        Conflict: `lease_lost`.
    """
    mine = select(TrainLease.holder).where(TrainLease.job_id == job_id, TrainLease.holder == holder)
    if (await db.execute(mine.with_for_update(read=True))).first() is None:
        raise Conflict("Another process trains this job now.", code="lease_lost")
