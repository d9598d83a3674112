"""One page of states: who may go where, and a function a transition. Nothing else writes `jobs.status`.

    create ──> validating_files ──> queued ──> running ──> succeeded
                     │                │ ▲         │ ├────> failed
                     │                ▼ │         │ └────> cancelled
                     │              paused <──────┘
                     ├──> failed      │
                     └──> cancelled <─┘

Each transition takes the locked row, checks the fence, writes the status and its event in the caller's transaction, and owes
the callbacks. Cancel and pause are intents (timestamps on the row); the worker that owns the run settles them, and a job
nobody has claimed is settled by the request, through the same functions.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import func

from app.db import Database
from app.events import service as events
from app.jobs import accept
from app.jobs.accept import Guard
from app.models import Event, Job
from app.webhooks import outbox


class Status(StrEnum):
    """A job's status and who sets it."""

    VALIDATING = "validating_files"  # the request that creates the job
    QUEUED = "queued"  # the worker that validated it
    RUNNING = "running"  # the worker that launched it
    PAUSED = "paused"  # the owner of the run, on intent
    SUCCEEDED = "succeeded"  # the owner of the run, from evidence
    FAILED = "failed"  # the owner of the run or of the validation, from evidence
    CANCELLED = "cancelled"  # the owner on intent, or the request when nobody owns it


NEXT: dict[Status, frozenset[Status]] = {
    Status.VALIDATING: frozenset({Status.QUEUED, Status.FAILED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED, Status.FAILED, Status.CANCELLED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}),
    Status.PAUSED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A pair of statuses that NEXT does not list."""


class FenceLost(RuntimeError):
    """Somebody else owns the job now: stop your hand at once, write nothing more."""


async def lock(db: AsyncSession, job_id: str, *, fence: int | None = None) -> Job:
    """The job's row, locked for this transaction and read anew.

    Args:
        db: The transaction.
        job_id: Which job.
        fence: The caller's fence token; None for a request, which owns nothing.
    Raises:
        FenceLost: The row's fence is not the caller's.
    """
    job = (
        await db.execute(
            select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
        )
    ).scalar_one()
    if fence is not None and job.fence != fence:
        raise FenceLost(f"{job_id}: fence {fence} is gone, it is {job.fence} now")
    return job


async def created(db: AsyncSession, job: Job) -> None:
    """A new job: waits for its dataset to be checked."""
    job.status = Status.VALIDATING
    await accept.insert(db, job, _first_words(job))


async def created_at_once(database: Database, job: Job, guard: Guard) -> bool:
    """The same, as one statement that accepts the job if `guard` holds and does nothing else; whether it did."""
    job.status = Status.VALIDATING
    return await accept.insert_if(database, job, _first_words(job), guard)


def _first_words(job: Job) -> list[str]:
    second = f" and validation file: {job.validation_file}" if job.validation_file else ""
    return [f"Created fine-tuning job: {job.id}", f"Validating training file: {job.training_file}{second}"]


async def queued(db: AsyncSession, job: Job, *, fence: int) -> None:
    """The dataset is good: the job waits for a slot, owned by nobody."""
    await _move(db, job, Status.QUEUED, "Files validated, moving job to queued state", fence=fence)
    _disown(job)
    await wake(db, job.id)


async def running(db: AsyncSession, job: Job, *, fence: int) -> None:
    """The pipeline was launched."""
    job.started_at = job.started_at or await now(db)  # of its first run: a resumed job has been running before
    event = await _move(db, job, Status.RUNNING, "Fine-tuning job started", fence=fence)
    await outbox.owe(db, job, "fine_tuning.job.running", event)


async def succeeded(db: AsyncSession, job: Job, *, fence: int) -> None:
    """The adapter is on S3, its manifest was read back, its version is registered in this transaction."""
    await events.record(db, job, f"New fine-tuned model created: {job.fine_tuned_model}")
    await _finish(db, job, Status.SUCCEEDED, "The job has successfully completed", fence=fence)


async def failed(db: AsyncSession, job: Job, error: dict[str, Any], *, fence: int | None) -> None:
    """The job failed; `error` is {code, message, param}."""
    message = f"The job failed: {error['message']}"
    await _finish(db, job, Status.FAILED, message, fence=fence, level="error", error=error)


async def cancelled(db: AsyncSession, job: Job, *, fence: int | None) -> None:
    """Cancelled on intent, with nothing left running and nothing kept."""
    _allow(job, Status.CANCELLED, fence)
    job.fine_tuned_model = None
    job.result_files = []
    await _finish(db, job, Status.CANCELLED, "Fine-tuning job cancelled", fence=fence, level="warn")


async def paused(db: AsyncSession, job: Job, *, fence: int | None) -> None:
    """Stopped on intent at a checkpoint; its slot is free."""
    job.paused_at, job.estimated_finish = await now(db), None
    event = await _move(db, job, Status.PAUSED, "Fine-tuning job paused", fence=fence, level="warn")
    _disown(job)
    await outbox.owe(db, job, "fine_tuning.job.paused", event)


async def resumed(db: AsyncSession, job: Job) -> None:
    """Asked to go on: waits for a slot."""
    job.pause_requested_at = job.paused_at = None
    await _move(db, job, Status.QUEUED, "Fine-tuning job resumed, moving job to queued state", fence=None)
    await wake(db, job.id)


async def found(db: AsyncSession, job: Job, at: datetime) -> None:
    """A job that a restored database did not know, by its result: running for a moment, then ended as it had (`ended_before`)."""
    job.status, job.created_at, job.started_at = Status.RUNNING, at, at
    db.add(job)
    await db.flush()
    await events.record(
        db, job, "This job is known again by its result: its row was not in the database.", level="warn"
    )


async def ended_before(db: AsyncSession, job: Job, at: datetime) -> None:
    """Its version is registered again in this transaction. Nobody is called: whoever asked was called then."""
    await events.record(db, job, f"New fine-tuned model created: {job.fine_tuned_model}")
    job.finished_at = at
    await _move(db, job, Status.SUCCEEDED, "The job has successfully completed", fence=None)


async def wake(db: AsyncSession, job_id: str) -> None:
    """Tell waiting workers, on commit, that there is something to claim. Carries the id only; polling is the truth."""
    await db.execute(text("select pg_notify('llamaflow_jobs', :id)"), {"id": job_id})


async def now(db: AsyncSession) -> Any:
    """The database's clock; the machine's is never asked."""
    return (await db.execute(select(func.clock_timestamp()))).scalar_one()


async def _finish(
    db: AsyncSession,
    job: Job,
    to: Status,
    message: str,
    *,
    fence: int | None,
    level: str = "info",
    error: dict[str, Any] | None = None,
) -> None:
    job.finished_at, job.error = await now(db), error  # with the status in one flush: the table allows no other way
    job.estimated_finish = job.paused_at = None
    event = await _move(db, job, to, message, fence=fence, level=level, data={"error": error} if error else None)
    _disown(job)
    await outbox.owe(db, job, f"fine_tuning.job.{to}", event)


async def _move(
    db: AsyncSession,
    job: Job,
    to: Status,
    message: str,
    *,
    fence: int | None,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> Event:
    _allow(job, to, fence)
    job.status = to
    return await events.record(db, job, message, level=level, data=data)


def _allow(job: Job, to: Status, fence: int | None) -> None:
    if fence is not None and job.fence != fence:
        raise FenceLost(f"{job.id}: fence {fence} is gone, it is {job.fence} now")
    if to not in NEXT[Status(job.status)]:
        raise IllegalTransition(f"{job.id}: {job.status} -> {to}")


def _disown(job: Job) -> None:
    job.worker_id = None
    job.lease_until = None
