"""Launches a job's pipeline: the run's row first, then the process, then what is known of it. May be broken off anywhere.

A run whose row has no pid is looked up in its folder: the shim leaves its handle there before it starts anything.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import gate
from app.embedded.environment import PASSED_ON
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.models import Job, Run, new_id
from app.nextflow import command, process
from app.nextflow.command import Order
from app.nextflow.process import Handle
from app.nextflow.progress import Cursor
from app.settings import PROJECT_ROOT, Settings, child_environment
from app.worker import folder as folders
from app.worker import remote
from app.worker.context import Context, Hand
from app.worker.folder import JobFolder
from app.worker.outage import insist
from finetune.steps import Comparison

PIPELINE = PROJECT_ROOT / "pipeline" / "main.nf"


async def last_run(db: AsyncSession, job_id: str) -> Run | None:
    """The job's newest run."""
    newest = select(Run).where(Run.job_id == job_id).order_by(Run.attempt.desc()).limit(1)
    return (await db.execute(newest)).scalar_one_or_none()


async def launch(context: Context, hand: Hand, job: Job, previous: Run | None) -> Run:
    """Start the job's next run.

    Raises:
        FenceLost: Somebody else owns the job now; nothing was started.
        OSError: The folder cannot be written, or the shim not be started.
    """
    folder = folders.of(context.settings, job.id)
    compare = None if folder.steps.exists() else await insist(lambda: _comparison(context, job))
    await asyncio.to_thread(folders.prepare, folder, context.settings, job, compare)
    if previous is None:
        await remote.seed(context, hand, folder, job)
    planned = _plan(context, hand, job, previous, folder)
    run = await insist(lambda: _insert(context, hand, planned))
    await remote.grant(context, hand, folder, run)
    handle = await asyncio.to_thread(start, context, folder, run)
    await insist(lambda: started(context, hand, run, handle))
    return run


async def _comparison(context: Context, job: Job) -> Comparison | None:
    async with context.database.transaction() as db:
        return await gate.comparison(db, job)


def _plan(context: Context, hand: Hand, job: Job, previous: Run | None, folder: JobFolder) -> Run:
    """The row of the next run: the same session as long as its work folder is here, so that nothing is done twice."""
    attempt = previous.attempt + 1 if previous else 1
    same = previous is not None and folder.work.is_dir() and not folder.swept.exists()
    return Run(
        id=new_id("run_"),
        project_id=job.project_id,
        job_id=job.id,
        attempt=attempt,
        fence=hand.fence,
        profile=remote.profile_of(job),
        session_uuid=previous.session_uuid if previous and same else str(uuid.uuid4()),
        folder=str(folder.run(attempt)),
        host=context.me.host,
        boot_id=context.me.here.boot_id,
        pid_namespace=context.me.here.pid_namespace,
        cursor=_cursor(previous, folder).as_json(),
    )


def _cursor(previous: Run | None, folder: JobFolder) -> Cursor:
    """Where reading begins: what a retry was seeded with is the old job's story, and told there."""
    if previous is not None:
        return Cursor(**previous.cursor).for_next_run()
    told = folder.train / "progress.jsonl"
    return Cursor(progress=told.stat().st_size if told.is_file() else 0)


async def _insert(context: Context, hand: Hand, planned: Run) -> Run:
    async with context.database.transaction() as db:
        await lifecycle.lock(db, hand.job_id, fence=hand.fence)
        return await db.merge(planned)


def start(context: Context, folder: JobFolder, run: Run) -> Handle | None:
    """Start the run's Nextflow; what was started before in its folder is not started twice. Blocking."""
    settings, run_folder = context.settings, Path(run.folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    folder.swept.unlink(missing_ok=True)
    history = folder.root / "launch" / ".nextflow" / "history"
    known = history.is_file() and run.session_uuid in history.read_text(encoding="utf-8", errors="replace")
    order = Order(
        run.job_id, folder.root, run_folder, run.session_uuid, resume=known, profile=run.profile, stub=settings.stub_run,
        access=folder.access if remote.is_remote(settings, run.profile) else None,
    )  # fmt: skip
    (run_folder / "params.json").write_text(command.parameters(order), encoding="utf-8")
    nextflow, needed = process.nextflow(settings)
    made = command.build(
        order,
        nextflow=nextflow,
        pipeline=PIPELINE,
        env=_environment(settings, needed),
        bin_dir=Path(sys.executable).parent,
    )
    here = context.me.here
    process.launch(made.argv, made.env, run_folder, cwd=made.cwd, lease=folder.lease, boot_id=here.boot_id)
    return process.handle(run_folder)


def _environment(settings: Settings, needed: dict[str, str]) -> dict[str, str]:
    """What Nextflow and the tasks get: no credential, and of this process's variables only known ones and those that settings name."""
    return child_environment(needed, keep=(*PASSED_ON, *settings.task_env))


async def started(context: Context, hand: Hand, run: Run, handle: Handle | None) -> None:
    """Tell the run's row its pid, and the job that it is running.

    Args:
        run: Gets the pid too.
        handle: None if the shim left none: it never started.
    """
    async with context.database.transaction() as db:
        job = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
        row = await db.get_one(Run, run.id)
        if handle is not None:
            row.pid, row.pid_started = handle.pid, handle.started
            run.pid, run.pid_started = handle.pid, handle.started
        if job.status == Status.QUEUED:
            await lifecycle.running(db, job, fence=hand.fence)


def label(job_id: str) -> str:
    """What every local process of a job carries in its environment."""
    return f"{command.LABEL}={job_id}"
