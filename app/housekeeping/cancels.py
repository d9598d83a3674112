"""Cancels brought to their end: paused jobs whose request died or found S3 away, and objects that appeared after their job was cancelled.

S3 may finish an upload whose sender was ended: such an object comes late, and nobody else would remove it.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import func, select

from app.files.storage import connect
from app.housekeeping.house import House, counted
from app.jobs import intents
from app.jobs.lifecycle import Status
from app.jobs.service import output_prefix
from app.models import Job
from app.worker import objects
from finetune.exit_codes import StepError

LATE_SECONDS = 60.0
"""The request itself is done with it sooner."""

LOOKED_SECONDS = 3600.0
"""How long after its end a cancelled job is looked after: some sweeps."""


async def finish(house: House) -> list[str]:
    """Remove what is left of such jobs, and cancel them."""
    before = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, LATE_SECONDS)
    async with house.database.transaction() as db:
        asked = select(Job).where(Job.status == Status.PAUSED, Job.cancel_requested_at < before)
        found = list((await db.execute(asked)).scalars())
    return [await _cancel(house, job) for job in found]


async def late_objects(house: House) -> list[str]:
    """Remove what appeared on S3 of jobs that were cancelled lately."""
    since = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, LOOKED_SECONDS)
    async with house.database.transaction() as db:
        asked = select(Job).where(Job.status == Status.CANCELLED, Job.finished_at > since, Job.started_at.is_not(None))
        found = list((await db.execute(asked)).scalars())
    removed = [(job.id, await _remove(house, job)) for job in found if not house.dry_run]
    return [
        f"Removed {counted(many, 'object')} that came after {name} was cancelled." for name, many in removed if many
    ]


async def _remove(house: House, job: Job) -> int:
    try:
        return await asyncio.to_thread(objects.remove, connect(house.settings), output_prefix(job))
    except StepError as problem:
        if problem.code.name == "s3_unavailable":
            raise
        return 0  # no such bucket, or no right to remove: then nothing was put there either


async def _cancel(house: House, job: Job) -> str:
    if not house.dry_run:
        await _remove(house, job)
        async with house.database.transaction() as db:
            await intents.removed(db, job.id)
    return house.did(f"Cancelled {job.id}, as it was asked to be.", f"cancel {job.id}, as it was asked to be.")
