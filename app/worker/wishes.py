"""What has been asked of a job while its run goes on: to be cancelled, to be paused, or to end for having run too long.

Read anew at every look: of the job's row and its stages only, so that a worker that adopts a run knows the same. The answer
to a pause and to an end of time is the trainer's, who saves first; one that does not within `pause_timeout` is ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs.lifecycle import FenceLost
from app.models import Job, Run, Stage
from app.nextflow.progress import FINE_TUNE, Cursor
from app.worker.context import Context, Hand
from finetune.exit_codes import StepError


@dataclass(frozen=True)
class Wishes:
    """What is wished of a job.

    Attributes:
        cancel: To end, with nothing kept.
        pause: To stop at a checkpoint.
        overtime: To end at a checkpoint: its training has run for longer than it may.
        late: The training had its time to save.
    """

    cancel: bool = False
    pause: bool = False
    overtime: bool = False
    late: bool = False

    @property
    def stop(self) -> bool:
        """Whether the training is to save and end."""
        return self.pause or self.overtime


async def of(context: Context, hand: Hand, run: Run) -> Wishes:
    """What is wished of the job whose `run` goes on.

    Raises:
        FenceLost: Somebody else owns the job now.
    """
    timeout = context.settings.pause_timeout
    waited = func.extract("epoch", func.clock_timestamp() - Job.pause_requested_at)
    limit = Job.spec["execution"]["max_runtime_seconds"].as_float()
    async with context.database.transaction() as db:
        asked = select(Job.fence, Job.cancel_requested_at, waited, limit).where(Job.id == hand.job_id)
        fence, cancel, paused, most = (await db.execute(asked)).one()
        if fence != hand.fence:
            raise FenceLost(f"{hand.job_id}: fence {hand.fence} is gone, it is {fence} now")
        over = await _overtime(db, run, most) if most is not None else None
    return Wishes(
        cancel=cancel is not None,
        pause=paused is not None,
        overtime=over is not None,
        late=(paused is not None and float(paused) > timeout) or (over is not None and over > timeout),
    )


async def _overtime(db: AsyncSession, run: Run, most: float) -> float | None:
    """Seconds the training has run for too long; None while it may run, and once it has ended well."""
    if FINE_TUNE in Cursor(**run.cursor).folders:
        return None
    over = await trained_seconds(db, run.job_id) - most
    return over if over > 0 else None


async def trained_seconds(db: AsyncSession, job_id: str) -> float:
    """How long FINE_TUNE has run, over all runs and attempts; what it waited for a machine does not count."""
    lasted = func.coalesce(Stage.finished_at, func.clock_timestamp()) - Stage.started_at
    query = select(func.coalesce(func.sum(func.extract("epoch", lasted)), 0)).where(
        Stage.job_id == job_id, Stage.process == FINE_TUNE, Stage.status != "cached"
    )
    return float((await db.execute(query)).scalar_one())


def max_runtime_exceeded(job: Job) -> dict[str, str | None]:
    """The error of a job whose training ran for too long."""
    limit = job.spec["execution"]["max_runtime_seconds"]
    step = (job.progress or {}).get("step")
    where = f" after step {step} of {job.progress['total_steps']}" if step and job.progress else ""
    message = (
        f"The training ran for longer than execution.max_runtime_seconds ({limit} s) and was ended{where}; its last "
        "checkpoint is kept. Retry the job to go on from there, with the same time again, or raise the limit."
    )
    return StepError("max_runtime_exceeded", message, param="execution.max_runtime_seconds").as_error()
