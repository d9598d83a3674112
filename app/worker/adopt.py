"""Where a job stands when a worker takes it: to be launched, to be followed, to be cancelled, or to be called paused.

The same questions for a fresh job, for one whose worker died, and for one whose machine was restarted: nothing is kept in
memory that the job's row, its newest run and the run's folder do not tell.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.models import Job, Run
from app.nextflow import process
from app.worker import deaths, settle
from app.worker.context import Context, Hand
from app.worker.launch import last_run
from app.worker.outage import insist

TAKEN_OVER = "The worker that held this job is gone; another one took it over."


@dataclass(frozen=True)
class Launch:
    """No run goes on: start the next one."""

    job: Job
    previous: Run | None


@dataclass(frozen=True)
class Follow:
    """A run was started and not settled: it goes on, or its end is to be judged."""

    job: Job
    run: Run


@dataclass(frozen=True)
class Cancel:
    """The job is to be cancelled; `run` may still go on."""

    job: Job
    run: Run | None


@dataclass(frozen=True)
class Pause:
    """The job is to be paused, and no run of it goes on."""

    job: Job


Situation = Launch | Follow | Cancel | Pause


async def assess(context: Context, hand: Hand) -> Situation | None:
    """What is to be done for a claimed job; None when it is settled.

    Raises:
        FenceLost: Somebody else owns the job now.
    """
    situation = await insist(lambda: _assess(context, hand))
    if isinstance(situation, Follow) and not await asyncio.to_thread(was_started, situation.run):
        await settle.close_run(context, hand, situation.run, None, None)
        return await insist(lambda: _assess(context, hand))
    return situation


async def _assess(context: Context, hand: Hand) -> Situation | None:
    async with context.database.transaction() as db:
        situation = await _situation(db, context, hand)
    hand.told = True  # not before the commit: what was rolled back is to be recorded again
    return situation


async def _situation(db: AsyncSession, context: Context, hand: Hand) -> Situation | None:
    job = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
    if job.status not in (Status.QUEUED, Status.RUNNING):
        return None
    run = await last_run(db, job.id)
    if job.cancel_requested_at is not None:
        return Cancel(job, run)
    if await _is_hopeless(db, context, hand, job, run):
        return None
    if run is None or run.finished_at is not None:
        return Launch(job, run) if job.pause_requested_at is None else Pause(job)
    return Follow(job, run)


async def _is_hopeless(db: AsyncSession, context: Context, hand: Hand, job: Job, run: Run | None) -> bool:
    """Record a takeover, once a claim; whether the job failed for being lost again and again, with nothing left running."""
    if hand.told or hand.claim.previous is None:
        return False
    again = await deaths.record(db, job, TAKEN_OVER)
    if not again or (run is not None and run.finished_at is None):
        return False  # a run that goes on is followed: its own end decides
    await settle.forget_keys(context, hand)
    await lifecycle.failed(db, job, deaths.crash_loop(), fence=hand.fence)
    return True


def was_started(run: Run) -> bool:
    """Whether a run's process was started; if not, it never will be, not even by a worker that wakes up again."""
    if run.finished_at is not None:
        return True
    return process.handle(Path(run.folder)) is not None or not _give_up(Path(run.folder))


def _give_up(folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    return process.give_up(folder)
