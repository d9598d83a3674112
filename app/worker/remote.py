"""Runs whose tasks share no disk with the worker: they are given a token, and what their training tells is brought here.

What was brought lies in the job's train/ folder, byte for byte as the training wrote it, so that everything else reads it as
if the disk were shared. May touch run_tokens and run_lines through app/runs.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import structlog

from app.jobs import lifecycle
from app.jobs.service import output_prefix
from app.models import Job, Run
from app.runs import lines, tokens
from app.settings import Settings
from app.worker import folder as folders
from app.worker.context import Context, Hand
from app.worker.folder import JobFolder
from app.worker.outage import insist
from finetune.mirror import PREFIX

log = structlog.get_logger("worker.remote")


def is_remote(settings: Settings, profile: str) -> bool:
    """Whether tasks of a profile do not see the runs folder."""
    return profile in settings.unshared_profiles


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


async def exchange(context: Context, folder: JobFolder, run: Run) -> None:
    """Bring what a run's training told, pass on what is asked of it, and keep its token alive. Nothing where the disk is shared."""
    if not is_remote(context.settings, run.profile):
        return
    while await insist(lambda: _exchange(context, folder, run)):
        pass


async def _exchange(context: Context, folder: JobFolder, run: Run) -> bool:
    progress = folder.train / "progress.jsonl"
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
