"""Folders of jobs on this machine: cleared some time after the job's end, once its logs are on S3.

A paused job keeps its logs and its checkpoints; resumed, it goes on from the last one in a new session of Nextflow. Folders
that are no job's are left alone. Nextflow's own clean-up is never used.
"""

from __future__ import annotations

import asyncio
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import ColumnElement, SQLColumnExpression, exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.events import service as events
from app.files.storage import connect
from app.housekeeping import archive
from app.housekeeping.house import House, counted
from app.jobs import lifecycle, service
from app.jobs.lifecycle import Status
from app.jobs.service import output_prefix
from app.models import FINAL, Job
from app.settings import Settings
from app.worker import folder as folders
from app.worker import objects
from app.worker.folder import JobFolder
from finetune.exit_codes import StepError
from finetune.s3 import listing

PAUSED_LONG = (
    "This job has been paused for {days:,.0f} days: the files of its tasks were removed. Its checkpoints are kept; "
    "resumed, it fetches its dataset again and goes on from the last one."
)

log = structlog.get_logger("housekeeping")


async def clear(house: House) -> list[str]:
    """Clear what is past its time."""
    found = await asyncio.to_thread(names, house.settings.runs)
    async with house.database.transaction() as db:
        past = await _past(db, found, house.settings)
    cleared: list[str] = []
    failed: list[str] = []
    for job_id, status in past:
        try:
            if await (_clear_paused if status == Status.PAUSED else _clear_ended)(house, job_id):
                cleared.append(job_id)
        except (StepError, OSError) as problem:
            failed.append(f"The folder of {job_id} stays, its logs could not be kept: {problem}")
    what = f"{counted(len(cleared), 'job folder')}: {', '.join(cleared)}"
    return failed + ([house.did(f"Cleared {what}.", f"clear {what}.")] if cleared else [])


async def _clear_ended(house: House, job_id: str) -> bool:
    """Keep the logs of a job that has ended, then remove its folder and what a failed upload left on S3."""
    folder = folders.of(house.settings, job_id)
    if house.dry_run:
        return True
    async with house.database.transaction() as db:
        job = await db.get_one(Job, job_id)
        runs, stages = await service.runs_of(db, job), await service.stages(db, job)
    uri = await asyncio.to_thread(archive.store, house.settings, job, folder.root, runs, stages)
    if job.status != Status.SUCCEEDED:
        await asyncio.to_thread(_remove_half, house.settings, job)
    async with house.database.transaction() as db:
        (await lifecycle.lock(db, job_id)).logs_uri = uri
    await asyncio.to_thread(shutil.rmtree, folder.root, ignore_errors=True)
    return True


def _remove_half(settings: Settings, job: Job) -> None:
    """Remove what the upload of a job that did not succeed left; a prefix with a manifest is whole, and stays."""
    s3, below = connect(settings), output_prefix(job)
    try:
        found = [row.uri for row in listing(s3, below)]
        if found and f"{below}manifest.json" not in found:
            objects.remove(s3, below)
    except StepError as problem:
        log.warning("not_removed", job=job.id, prefix=below, error=problem.message)


async def _clear_paused(house: House, job_id: str) -> bool:
    """Remove a paused job's task files, and say so. First it is marked: from then on no run will look for them."""
    folder = folders.of(house.settings, job_id)
    if house.dry_run:
        return True
    async with house.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        if job.status != Status.PAUSED:
            return False
        tasks = list(folder.work.glob("*/*"))
        folder.swept.touch()
        paused = (await db.execute(select(_age(Job.paused_at)).where(Job.id == job_id))).scalar_one()
        await events.record(db, job, PAUSED_LONG.format(days=float(paused) / 86400), level="warn")
    await asyncio.to_thread(_remove_tasks, folder, tasks)
    return True


def _remove_tasks(folder: JobFolder, tasks: list[Path]) -> None:
    for task in tasks:
        for path in task.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif not path.name.startswith((".command.", ".exitcode")):
                path.unlink(missing_ok=True)


def names(runs: Path) -> list[str]:
    """Folders here that may be a job's."""
    return [path.name for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []


def _age(since: SQLColumnExpression[datetime | None]) -> ColumnElement[Any]:
    """Seconds since then, by the database's clock."""
    return func.extract("epoch", func.clock_timestamp() - since)


async def _past(db: AsyncSession, found: list[str], settings: Settings) -> list[tuple[str, str]]:
    """Of these jobs those past their time: id and status. Forgets the keys of every one that has ended.

    One that is being retried stays until its training was taken over.
    """
    retry = aliased(Job)
    waiting = exists().where(retry.retry_of == Job.id, retry.status.in_((Status.VALIDATING, Status.QUEUED)))
    since = func.coalesce(Job.finished_at, Job.paused_at)
    query = select(Job.id, Job.status, _age(since), waiting).where(Job.id.in_(found), since.is_not(None))
    kept = {
        Status.SUCCEEDED: settings.keep_succeeded, Status.CANCELLED: settings.keep_succeeded,
        Status.FAILED: settings.keep_failed, Status.PAUSED: settings.keep_paused,
    }  # fmt: skip
    past = []
    for job_id, status, age, retried in (await db.execute(query)).all():
        folder = folders.of(settings, job_id)
        if status in FINAL:
            folders.forget_credentials(folder)
        if (
            float(age) >= kept[Status(status)]
            and not retried
            and not (status == Status.PAUSED and folder.swept.exists())
        ):
            past.append((job_id, status))
    return past
