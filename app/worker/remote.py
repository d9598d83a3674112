"""Runs whose tasks share no disk with the worker: they are given a token, and what their training tells is brought here.

What was brought lies in the job's train/ folder, byte for byte as the training wrote it, so that everything else reads it as
if the disk were shared. May touch run_tokens and run_lines through app/runs.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import ValidationError

from app.files.storage import connect
from app.jobs import lifecycle
from app.jobs.service import output_prefix
from app.models import Job, Run
from app.runs import lines, tokens
from app.settings import Settings
from app.worker import folder as folders
from app.worker import objects
from app.worker.context import Context, Hand
from app.worker.folder import JobFolder
from app.worker.outage import insist
from app.worker.seed import CHECKPOINT, PROGRESS, history
from finetune.exit_codes import StepError
from finetune.mirror import PREFIX, RECORD, Mirror, step_of
from finetune.progress import write_atomic
from finetune.s3 import errors, split

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

log = structlog.get_logger("worker.remote")


def is_remote(settings: Settings, profile: str) -> bool:
    """Whether tasks of a profile do not see the runs folder."""
    return profile in settings.unshared_profiles


def profile_of(job: Job) -> str:
    """Where a job runs."""
    return str(job.spec.get("execution", {}).get("profile", "local"))


def mirror_prefix(job: Job) -> str:
    """Where on S3 the state of a job's training is kept."""
    return output_prefix(job) + PREFIX


def url(settings: Settings) -> str:
    """How tasks reach the API."""
    return (settings.tasks_url or settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")


async def grant(context: Context, hand: Hand, folder: JobFolder, run: Run) -> None:
    """Give a run that is about to be launched its token, in a file that only this user reads. Nothing for a run that needs none."""
    if not is_remote(context.settings, run.profile):
        return

    async def once() -> str:
        async with context.database.transaction() as db:
            await lifecycle.lock(db, hand.job_id, fence=hand.fence)
            return await tokens.issue(db, run, context.settings.run_token_seconds)

    access = {"url": url(context.settings), "token": await insist(once)}
    await asyncio.to_thread(folders.write_private, folder.access, json.dumps(access) + "\n")


async def seed(context: Context, hand: Hand, folder: JobFolder, job: Job) -> None:
    """Give a job that retries another one the old training's last checkpoint and the history up to it, if its mirror is still there.

    Whether that fits is decided by the training, by its key. May be broken off and done again.
    """
    if job.retry_of is None or not is_remote(context.settings, profile_of(job)):
        return
    old, told = await insist(lambda: _of_old(context, job))
    if old is None:
        return
    try:
        copying = mirror_prefix(old), mirror_prefix(job)
        step = await asyncio.to_thread(_copy_checkpoint, connect(context.settings), *copying)
    except StepError as problem:
        log.warning("not_seeded", job=job.id, error=problem.message)
        return
    if step is None:
        return
    content = history((json.loads(line) for line in told.splitlines()), folder.train, step).encode()
    await asyncio.to_thread(write_atomic, folder.train / PROGRESS, content)

    async def once() -> None:
        async with context.database.transaction() as db:
            await lifecycle.lock(db, hand.job_id, fence=hand.fence)
            await lines.append(db, job.id, 0, content)

    await insist(once)


async def _of_old(context: Context, job: Job) -> tuple[Job | None, bytes]:
    """The job that is retried and what its training told; None once the new one has lines of its own."""
    told, piece = b"", b"-"
    async with context.database.transaction() as db:
        if await lines.ending(db, job.id):
            return None, b""
        while piece := await lines.read(db, str(job.retry_of), len(told)):
            told += piece
        return await db.get_one(Job, job.retry_of), told


def _copy_checkpoint(s3: S3Client, old: str, new: str) -> int | None:
    """Bring the newest checkpoint of one mirror into another one, record last; its step, None if there is none. Blocking."""
    try:
        record = Mirror.model_validate_json(objects.read(s3, old + RECORD))
    except (StepError, ValidationError) as problem:
        if isinstance(problem, StepError) and problem.code.name != "file_not_found":
            raise
        return None
    checkpoints = record.folders(CHECKPOINT)
    newest = max(checkpoints, key=step_of, default=None)
    if newest is None:
        return None
    (from_bucket, from_key), (to_bucket, to_key) = split(old), split(new)
    for sha256 in {entry.sha256 for entry in checkpoints[newest]}:
        source = f"{from_bucket}/{from_key}{sha256}"
        with errors(old + sha256):
            s3.copy_object(Bucket=to_bucket, Key=to_key + sha256, CopySource=source)
    copied = Mirror(train_key=record.train_key, files=checkpoints[newest])
    with errors(new + RECORD):
        s3.put_object(Bucket=to_bucket, Key=to_key + RECORD, Body=copied.text().encode())
    return step_of(newest)


async def exchange(context: Context, folder: JobFolder, run: Run) -> None:
    """Bring what a run's training told, pass on what is asked of it, and keep its token alive. Nothing where the disk is shared."""
    if not is_remote(context.settings, run.profile):
        return
    while await insist(lambda: _exchange(context, folder, run)):
        pass


async def _exchange(context: Context, folder: JobFolder, run: Run) -> bool:
    progress = folder.train / PROGRESS
    start, asked = await asyncio.to_thread(lambda: (_size(progress), folders.is_asked(folder)))
    async with context.database.transaction() as db:
        content = await lines.read(db, run.job_id, start)
        await tokens.ask(db, run.id, "pause" if asked else None)
        await tokens.renew(db, run.id, context.settings.run_token_seconds)
    if content:
        await asyncio.to_thread(_put, progress, start, content)
    return bool(content)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _put(path: Path, start: int, content: bytes) -> None:
    """At its place and not at the end: two workers that do this at once write the same."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        while content:
            written = os.pwrite(handle, content, start)
            start, content = start + written, content[written:]
    finally:
        os.close(handle)
