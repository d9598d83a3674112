"""Clears what settled jobs and gone workers leave: work folders after their retention, keys, old checkpoints, worker rows.

Logs of tasks stay where the API reads them; Nextflow's own clean-up is never used.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import is_outage
from app.models import FINAL, Job, Worker
from app.worker import folder as folders
from app.worker.context import Context
from app.worker.folder import JobFolder

EVERY_SECONDS = 600.0
KEPT_SECONDS = {"succeeded": 24 * 3600.0, "cancelled": 24 * 3600.0, "failed": 7 * 24 * 3600.0}
WORKER_KEPT_SECONDS = 7 * 24 * 3600.0
SWEPT = "swept"
"""Marks a job's folder that was cleared."""

log = structlog.get_logger("worker.housekeeping")


async def keep_house(context: Context) -> None:
    """Clear up now and then, for ever."""
    while True:
        try:
            await sweep(context)
        except Exception as problem:
            if not (is_outage(problem) or isinstance(problem, OSError)):
                raise
            log.warning("not_swept", error=str(problem)[:200])
        await asyncio.sleep(EVERY_SECONDS)


async def sweep(context: Context, kept: dict[str, float] = KEPT_SECONDS) -> list[str]:
    """Clear once.

    Args:
        context: The worker's.
        kept: Seconds a job's work folder is kept after its end, by status.
    Returns:
        Ids of the jobs whose folders were cleared.
    """
    names = await asyncio.to_thread(_unswept, context.settings.runs)
    async with context.database.transaction() as db:
        await _forget_workers(db)
        over = await _over(db, names)
    cleared = []
    for job_id, status, age in over:
        folder = folders.of(context.settings, job_id)
        await asyncio.to_thread(folders.forget_credentials, folder)
        if age >= kept[status]:
            await asyncio.to_thread(clear, folder)
            cleared.append(job_id)
    return cleared


def clear(folder: JobFolder) -> None:
    """Remove a job's task folders but for their logs, and its checkpoints but for what they told."""
    for task in folder.work.glob("*/*"):
        for path in task.iterdir():
            if not path.name.startswith((".command.", ".exitcode")):
                _remove(path)
    for path in folder.train.glob("checkpoint-*"):
        _remove(path)
    (folder.root / SWEPT).touch()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _unswept(runs: Path) -> list[str]:
    if not runs.is_dir():
        return []
    return [path.name for path in runs.iterdir() if path.is_dir() and not (path / SWEPT).exists()]


async def _over(db: AsyncSession, names: list[str]) -> list[tuple[str, str, float]]:
    """Of these jobs those that ended: id, status, seconds since."""
    age = func.extract("epoch", func.clock_timestamp() - Job.finished_at)
    rows = await db.execute(select(Job.id, Job.status, age).where(Job.id.in_(names), Job.status.in_(FINAL)))
    return [(job_id, status, float(seconds)) for job_id, status, seconds in rows]


async def _forget_workers(db: AsyncSession) -> None:
    since = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, WORKER_KEPT_SECONDS)
    await db.execute(delete(Worker).where(Worker.heartbeat_at < since))
