"""Turns what was seen of a run into rows and events: stages, metrics, checkpoints, the job's progress and resolved values.

One transaction holds the rows, the events and the cursor they were read up to: a worker that adopts the run goes on exactly
there, and nothing is told twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.events import service as events
from app.jobs import lifecycle, measured
from app.models import Checkpoint, Event, Job, Run, Stage, new_id
from app.nextflow import progress
from app.nextflow.progress import FINE_TUNE, PREPARE_DATA, Began, Cursor, Ended, Seen, Submitted
from app.settings import Settings
from app.webhooks import outbox
from app.worker import training
from app.worker.folder import JobFolder
from app.worker.outage import insist
from finetune.exit_codes import BY_NAME
from finetune.steps import Resolved

STATUS = {"COMPLETED": "succeeded", "CACHED": "cached", "FAILED": "failed", "ABORTED": "aborted"}
STOPPED = {BY_NAME[name].status for name in ("paused", "interrupted")}
"""Exit statuses of tasks that ended as they were asked to: they have not failed."""


async def catch_up(
    database: Database, settings: Settings, folder: JobFolder, run: Run, fence: int, *, over: bool = False
) -> None:
    """Record everything new of a run.

    Args:
        database: Where to.
        settings: The price table, for what is expected of the training.
        folder: The job's folder.
        run: Read anew into its `cursor`.
        fence: The caller's.
        over: Nothing more will come of it.
    Raises:
        FenceLost: Somebody else owns the job now; nothing was written.
    """
    while True:
        before = Cursor(**run.cursor)
        seen, after = await asyncio.to_thread(progress.look, Path(run.folder), folder.work, folder.train, before)
        story = training.tell(seen.lines, before.training, over=over and not seen.lines)
        if not seen and not story.notes and after == before:
            return
        resolved = None if before.resolved else await asyncio.to_thread(_resolved, seen, after)
        moved = replace(after, training=story.state, resolved=before.resolved or resolved is not None)
        run.cursor = await insist(lambda: _record(database, settings, run, fence, before, moved, seen, story, resolved))  # noqa: B023  awaited at once


async def _record(
    database: Database,
    settings: Settings,
    run: Run,
    fence: int,
    before: Cursor,
    after: Cursor,
    seen: Seen,
    story: training.Story,
    resolved: dict[str, Any] | None,
) -> dict[str, Any]:
    async with database.transaction() as db:
        job = await lifecycle.lock(db, run.job_id, fence=fence)
        row = (await db.execute(select(Run).where(Run.id == run.id))).scalar_one()
        if (row.cursor or {}) != (run.cursor or {}):
            return row.cursor  # an earlier try was committed although its answer was lost
        for task in seen.submitted:
            await _submitted(db, run, task)
        for ended in [end for end in seen.ended if end.row.process != FINE_TUNE]:
            await _ended(db, job, run, ended)
            if ended.row.process == PREPARE_DATA and ended.report is not None:
                await measured.expect(db, job, ended.report["data"], settings)
        for begun in seen.began:
            await _began(db, job, run, begun)
        if resolved is not None and job.resolved is None:
            job.resolved = resolved
        await _train(db, job, story)
        for ended in [end for end in seen.ended if end.row.process == FINE_TUNE]:
            await _ended(db, job, run, ended)
        row.cursor = after.as_json()
        return row.cursor


async def _submitted(db: AsyncSession, run: Run, task: Submitted) -> None:
    now = await lifecycle.now(db)
    await db.execute(
        insert(Stage)
        .values(
            id=new_id("stage_"), project_id=run.project_id, job_id=run.job_id, run_id=run.id, process=task.process,
            task_hash=task.task_hash, attempt=1, status="cached" if task.cached else "submitted", submitted_at=now,
        )
        .on_conflict_do_nothing()
    )  # fmt: skip


async def _began(db: AsyncSession, job: Job, run: Run, task: Began) -> None:
    stage = await _stage(db, run, task.task_hash, task.process)
    stage.status, stage.workdir, stage.started_at = "running", task.workdir, _time(task.time)
    job.progress = _progress(job, {"stage": task.process})


async def _ended(db: AsyncSession, job: Job, run: Run, ended: Ended) -> None:
    row = ended.row
    stage = await _stage(db, run, row.task_hash, row.process)
    stage.status = "aborted" if row.exit in STOPPED else STATUS.get(row.status, "aborted")
    stage.exit_status, stage.attempt, stage.workdir = row.exit, row.attempt, row.workdir
    stage.peak_rss_bytes = row.peak_rss
    stage.submitted_at, stage.finished_at = _time(row.submit) or stage.submitted_at, _time(row.complete)
    stage.started_at = _time(row.start) or stage.started_at
    if ended.report is not None:
        message, data = ended.report["message"], ended.report["data"]
        level = "warn" if data.get("warnings") else "info"
        await events.record(db, job, message, level=level, data={"stage": row.process} | data)
    if row.status == "FAILED" and row.error_action == "RETRY":
        message = f"{row.process} ended with exit status {row.exit}; it is tried again (attempt {row.attempt + 1})"
        await events.record(db, job, message, level="warn", data={"stage": row.process, "exit_status": row.exit})


async def _stage(db: AsyncSession, run: Run, task_hash: str, process: str) -> Stage:
    """The stage's row; made if Nextflow's output has not named it yet."""
    await _submitted(db, run, Submitted(task_hash, process))
    found = select(Stage).where(Stage.run_id == run.id, Stage.task_hash == task_hash)
    return (await db.execute(found)).scalar_one()


async def _train(db: AsyncSession, job: Job, story: training.Story) -> None:
    for note in story.notes:
        kind = "metrics" if note.kind == "metrics" else "message"
        event = await events.record(db, job, note.message, type=kind, data={"stage": FINE_TUNE} | note.data)
        if note.kind == "checkpoint":
            await _checkpoint(db, job, event, note.data)
    if story.progress is not None:
        job.progress = _progress(job, {"stage": FINE_TUNE} | story.progress)
        eta = story.progress.get("eta_seconds")
        if isinstance(eta, int | float):
            job.estimated_finish = await lifecycle.now(db) + timedelta(seconds=eta)


async def _checkpoint(db: AsyncSession, job: Job, event: Event, data: dict[str, Any]) -> None:
    made = insert(Checkpoint).values(
        id=new_id("ftckpt_"), project_id=job.project_id, job_id=job.id, step_number=data["step"], metrics=data
    )
    again = made.on_conflict_do_update(index_elements=["job_id", "step_number"], set_={"metrics": data})
    made_id = (await db.execute(again.returning(Checkpoint.id))).scalar_one()  # after a resume a step may come again
    told = {"id": made_id, "step_number": data["step"], "metrics": data}
    await outbox.owe(db, job, "fine_tuning.job.checkpoint", event, {"checkpoint": told})


def _progress(job: Job, news: dict[str, Any]) -> dict[str, Any]:
    blank = dict.fromkeys(("stage", "step", "total_steps", "percent", "eta_seconds", "tokens_per_second"))
    return blank | (job.progress or {}) | news


def _resolved(seen: Seen, cursor: Cursor) -> dict[str, Any] | None:
    """What PREPARE_DATA resolved, once FINE_TUNE runs; its start may be seen before the row that ends PREPARE_DATA."""
    folder = cursor.folders.get(PREPARE_DATA)
    if folder is None or not (seen.lines or FINE_TUNE in {*cursor.running.values(), *cursor.folders}):
        return None
    try:
        made = Resolved.model_validate(progress.read_object(Path(folder) / "prepared" / "resolved.json"))
    except ValidationError:
        return None
    return made.model_dump(mode="json")


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
