"""Paused jobs that are to be cancelled, where the request died or found S3 away before what their runs had left there was removed."""

from __future__ import annotations

import asyncio

from sqlalchemy import func, select

from app.files.storage import connect
from app.housekeeping.house import House
from app.jobs import intents
from app.jobs.lifecycle import Status
from app.jobs.service import output_prefix
from app.models import Job
from app.worker import objects
from finetune.exit_codes import StepError

LATE_SECONDS = 60.0
"""The request itself is done with it sooner."""


async def finish(house: House) -> list[str]:
    """Remove what is left of such jobs, and cancel them."""
    before = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, LATE_SECONDS)
    async with house.database.transaction() as db:
        asked = select(Job).where(Job.status == Status.PAUSED, Job.cancel_requested_at < before)
        found = list((await db.execute(asked)).scalars())
    return [await _cancel(house, job) for job in found]


async def _cancel(house: House, job: Job) -> str:
    if not house.dry_run:
        try:
            await asyncio.to_thread(objects.remove, connect(house.settings), output_prefix(job))
        except StepError as problem:
            if problem.code.name == "s3_unavailable":
                raise
            # no such bucket, or no right to remove: then nothing was put there either
        async with house.database.transaction() as db:
            await intents.removed(db, job.id)
    return house.did(f"Cancelled {job.id}, as it was asked to be.", f"cancel {job.id}, as it was asked to be.")
