"""Counts how often a job lost its worker or its run with nothing done in between, so that no job does so for ever."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.events import service as events
from app.models import Event, Job, Stage
from finetune.exit_codes import StepError

LIMIT = 3


async def record(db: AsyncSession, job: Job, message: str) -> bool:
    """Write down that something of the job was lost.

    Args:
        db: The transaction, with the job's row locked.
        job: Which job.
        message: What was lost and what happens now, for the user.
    Returns:
        Whether this was the third time without any progress between: the job must fail with `crash_loop()`.
    """
    mark = await _mark(db, job)
    same = select(func.count()).where(Event.job_id == job.id, Event.data["lost"].as_string() == mark)
    before = (await db.execute(same)).scalar_one()
    await events.record(db, job, message, level="warn", data={"lost": mark})
    return before + 1 >= LIMIT


def crash_loop() -> dict[str, str | None]:
    """The error of such a job."""
    return StepError("crash_loop").as_error()


async def _mark(db: AsyncSession, job: Job) -> str:
    """How far the job has come, as one word: equal words mean no progress."""
    done = select(func.count(Stage.process.distinct())).where(Stage.job_id == job.id, Stage.status == "succeeded")
    step = (job.progress or {}).get("step") or 0
    return f"{job.status}, {(await db.execute(done)).scalar_one()} stages, step {step}"
