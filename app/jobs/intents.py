"""Cancel, pause, resume: what a client may ask of a job that has begun. Asked here, settled by whoever owns the job.

A job that nobody owns is settled by the request itself, through the same functions. Commits nothing, knows no HTTP.
"""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.errors import BadRequest
from app.events import service as events
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.jobs.service import find
from app.models import FINAL, Job, Run


async def cancel(db: AsyncSession, caller: Caller, job_id: str) -> Job:
    """Ask for a job to be cancelled. One that nobody owns and that never ran is settled here.

    Raises:
        BadRequest: `job_not_cancellable`: it has succeeded or failed.
    """
    await find(db, caller, job_id)
    job = await lifecycle.lock(db, job_id)
    if job.status == Status.CANCELLED:
        return job
    if job.status in FINAL:
        raise BadRequest(f"{job.id} has {job.status}; it cannot be cancelled any more.", code="job_not_cancellable")
    if job.cancel_requested_at is None:
        job.cancel_requested_at = await lifecycle.now(db)
        await events.record(db, job, "Cancel requested")
    if not _is_free(job):
        await lifecycle.wake(db, job.id)
    elif not await _has_run(db, job):
        await lifecycle.cancelled(db, job, fence=None)
    return job


def awaits_removal(job: Job) -> bool:
    """Whether a cancelled job has only to be rid of what its earlier runs may have left on S3."""
    return job.cancel_requested_at is not None and _is_free(job)


async def removed(db: AsyncSession, job_id: str) -> Job:
    """Nothing of a job to be cancelled is left: it is, unless a worker took it meanwhile."""
    job = await lifecycle.lock(db, job_id)
    if awaits_removal(job):
        await lifecycle.cancelled(db, job, fence=None)
    return job


async def pause(db: AsyncSession, caller: Caller, job_id: str) -> Job:
    """Ask for a job to be paused. A queued one that nobody owns is paused here; else its worker lets the training save and ends the run.

    Raises:
        BadRequest: `job_not_pausable`: it has ended, or is being cancelled.
    """
    await find(db, caller, job_id)
    job = await lifecycle.lock(db, job_id)
    if job.status in FINAL or job.cancel_requested_at is not None:
        why = f"has {job.status}" if job.status in FINAL and job.status != Status.CANCELLED else "is cancelled"
        raise BadRequest(f"{job.id} {why}; it cannot be paused any more.", code="job_not_pausable")
    if job.status == Status.PAUSED:
        return job
    if job.pause_requested_at is None:
        job.pause_requested_at = await lifecycle.now(db)
        await events.record(db, job, "Pause requested")
    if job.status == Status.QUEUED and job.worker_id is None:
        await lifecycle.paused(db, job, fence=None)
    else:
        await lifecycle.wake(db, job.id)
    return job


async def resume(db: AsyncSession, caller: Caller, job_id: str) -> Job:
    """Let a paused job go on; withdraw a pause that is not settled yet. A job that goes on anyway is left as it is.

    Raises:
        BadRequest: `job_not_resumable`: it has ended, or is being cancelled.
    """
    await find(db, caller, job_id)
    job = await lifecycle.lock(db, job_id)
    if job.status in FINAL or job.cancel_requested_at is not None:
        raise BadRequest(f"{job.id} {_why_over(job)}", code="job_not_resumable")
    if job.status == Status.PAUSED:
        await lifecycle.resumed(db, job)
    elif job.pause_requested_at is not None:
        job.pause_requested_at = None
        await events.record(db, job, "Pause withdrawn")
        await lifecycle.wake(db, job.id)
    return job


def _why_over(job: Job) -> str:
    if job.status == Status.SUCCEEDED:
        return "has succeeded; there is nothing left to resume."
    if job.status == Status.FAILED:
        return "has failed; it cannot be resumed. POST …/retry makes a new job that goes on from its last checkpoint."
    return "is cancelled; it cannot be resumed. Once it has ended, POST …/retry makes a new job of it."


def _is_free(job: Job) -> bool:
    """Whether nobody owns a job and nothing of it runs."""
    return job.worker_id is None and job.status in (Status.VALIDATING, Status.QUEUED, Status.PAUSED)


async def _has_run(db: AsyncSession, job: Job) -> bool:
    return bool((await db.execute(select(exists().where(Run.job_id == job.id)))).scalar_one())
