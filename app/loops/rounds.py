"""Rounds: whether a loop is due, and if it is, a job of old and new data from the original base, with the loop's gate.

One process at a time looks (an advisory lock), and a round is written under the loop's row lock together with its job, whose
idempotency key is the round: whatever dies on the way, a round is begun once, and never while another one is under way.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.db import Database
from app.errors import ApiError, Conflict, TooMany, Unavailable
from app.events import service as events
from app.feedback import examples
from app.feedback import service as feedback
from app.feedback.examples import Example
from app.files import service as files
from app.files.storage import Storage
from app.jobs import checks
from app.jobs import service as jobs
from app.jobs.schemas import JobCreate
from app.loops import dataset, service
from app.loops.dataset import Made
from app.models import FINAL, AdapterVersion, Job, Loop, LoopRound, new_id
from app.settings import Settings
from finetune.exit_codes import StepError
from finetune.model.cache import file_sha256

LOCK = "llamaflow.loops"
AGAIN = timedelta(seconds=30)
"""How soon a loop that waits is looked at again."""
LATER = timedelta(minutes=10)
"""The same where its training data had to be read to see that it waits."""

log = structlog.get_logger("loops")


@dataclass(frozen=True)
class Due:
    """A loop that may begin a round: who for, on what, with which feedback."""

    loop: Loop
    caller: Caller
    job: Job
    base: dict[str, Any]
    found: list[Example]
    until: datetime


async def look(settings: Settings, database: Database, storage: Storage) -> list[str]:
    """Look at every loop that is due, unless another process does.

    Returns:
        The jobs that were made.
    """
    async with database.alone(LOCK, 0.0) as ours:
        if not ours:
            return []
        async with database.transaction() as db:
            due = (Loop.paused_at.is_(None), Loop.next_look_at <= func.clock_timestamp())
            ids = list((await db.execute(select(Loop.id).where(*due).order_by(Loop.next_look_at))).scalars())
        made = [await _one(settings, database, storage, loop_id) for loop_id in ids]
        return [job_id for job_id in made if job_id is not None]


async def _one(settings: Settings, database: Database, storage: Storage, loop_id: str) -> str | None:
    async with database.transaction() as db:
        found = await _due(db, loop_id)
    if isinstance(found, str):
        await _wait(database, loop_id, found)
        return None
    try:
        return await _begin(settings, database, storage, found)
    except (StepError, ApiError, ValidationError) as problem:
        told = str(problem) if isinstance(problem, ValidationError) else problem.message
        log.warning("round_not_begun", loop=loop_id, error=told)
        passing = isinstance(problem, Unavailable | TooMany) or (isinstance(problem, StepError) and problem.code.retry)
        await _wait(database, loop_id, told, pause=not passing)
        return None


async def _due(db: AsyncSession, loop_id: str) -> Due | str:
    """What a round would be made of; or what the loop waits for."""
    loop = await db.get(Loop, loop_id)
    if loop is None or loop.paused_at is not None:
        return "It is paused."
    last = await db.get(LoopRound, (loop_id, loop.rounds)) if loop.rounds else None
    if last is not None and (status := (await db.get_one(Job, last.job_id)).status) not in FINAL:
        return f"Round {last.number} is under way: {last.job_id} is {status}."
    new = list(
        examples.of_feedback(
            await feedback.on(db, loop.project_id, loop.adapter, since=loop.considered_until), good=False
        )
    )
    if len(new) < loop.min_new_examples:
        return f"{len(new)} of {loop.min_new_examples} new corrections are there."
    job = await service.source(db, loop.project_id, loop.adapter)
    if isinstance(job, str):
        return job
    caller = await service.caller_of(db, loop)
    if caller is None:
        return "The key it was made with may not make jobs any more. Resume it with another key."
    rows = await feedback.on(db, loop.project_id, loop.adapter)
    version = (await db.execute(select(AdapterVersion).where(AdapterVersion.job_id == job.id))).scalar_one()
    return Due(loop, caller, job, version.base, list(examples.of_feedback(rows, good=False)), rows[-1].updated_at)


async def _begin(settings: Settings, database: Database, storage: Storage, due: Due) -> str | None:
    """Make the dataset, then the job and the round in one transaction."""
    chosen = await asyncio.to_thread(dataset.choose, settings, due.found, due.job)
    if len(chosen.examples) < due.loop.min_new_examples:
        left = ", ".join(
            f"{number} {name.replace('_', ' ')}" for name, number in chosen.counts().items() if name != "new"
        )
        told = f"{len(chosen.examples)} of {due.loop.min_new_examples} new examples ({left})."
        await _wait(database, due.loop.id, told, after=LATER)
        return None
    file_id = new_id("file-")
    uri = f"{settings.files_prefix.rstrip('/')}/{due.caller.project_id}/{file_id}"
    with tempfile.TemporaryDirectory(prefix="llamaflow-loop-") as scratch:
        made = await asyncio.to_thread(dataset.build, settings, chosen, due.job, Path(scratch))
        await asyncio.to_thread(dataset.upload, settings, made.path, uri)
        size, sha256 = made.path.stat().st_size, await asyncio.to_thread(file_sha256, made.path)
    head = await storage.head(uri)
    async with database.transaction() as db:
        loop = await service.find(db, due.caller, due.loop.id, lock=True)
        if loop.rounds != due.loop.rounds or loop.paused_at is not None:
            return None
        await files.add(
            db, due.caller, filename=f"{loop.adapter}-round-{loop.rounds + 1}.jsonl", purpose="fine-tune", size=size,
            uri=uri, etag=head.etag, sha256=sha256, owned=True, id=file_id,
        )  # fmt: skip
        job = await _job(db, due, storage, settings, file_id)
        await _record(db, loop, job, due, made, file_id)
    log.info("round_begun", loop=due.loop.id, job=job.id, **made.counts())
    return job.id


async def _job(db: AsyncSession, due: Due, storage: Storage, settings: Settings, file_id: str) -> Job:
    key = f"{due.loop.id}:{due.loop.rounds + 1}"
    body = request(due, file_id)
    if (there := await jobs.earlier(db, due.caller, body, key=key, retried=False)) is not None:
        raise Conflict(f"{there.id} is this round already.", code="idempotency_conflict")
    checked = await checks.at_once(db, due.caller, body, storage, settings)
    return await jobs.create(db, due.caller, body, checked, key=key)


def request(due: Due, file_id: str) -> JobCreate:
    """The job of a round: that of the promoted version, from the original base, with more data and the loop's gate."""
    spec = {name: value for name, value in due.job.spec.items() if value is not None}
    spec |= {
        "model": original(due.base),
        "training_file": file_id,
        "data": spec.get("data", {}) | {"format": "messages"},
        "evaluation": spec.get("evaluation", {}) | {"gate": due.loop.gate, "on_reject": "keep"},
        "output": spec.get("output", {}) | {"register_as": due.loop.adapter},
        "metadata": {"loop": due.loop.id, "round": str(due.loop.rounds + 1)},
    }
    spec.pop("preset", None)  # its values stand in the groups by now
    return JobCreate.model_validate(spec)


def original(base: dict[str, Any]) -> str:
    """The base of a version as a job names it, at the revision the version stands on."""
    if base.get("kind") == "s3" or not base.get("revision") or base["id"].startswith("/"):
        return str(base["location"] if base.get("kind") == "s3" else base["id"])
    return f"{base['id'].partition('@')[0]}@{base['revision']}"


async def _record(db: AsyncSession, loop: Loop, job: Job, due: Due, made: Made, file_id: str) -> None:
    counts = made.counts()
    loop.rounds += 1
    loop.considered_until, loop.waits_for = due.until, None
    now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    loop.next_look_at = now + max(AGAIN, timedelta(seconds=loop.every_seconds or 0))
    db.add(LoopRound(loop_id=loop.id, number=loop.rounds, job_id=job.id, training_file=file_id, counts=counts))
    rated = [rate for rate in await feedback.rates(db, loop.project_id, loop.adapter) if rate.ratings]
    said = "".join(
        f"; version {rate.version} was rated bad in {rate.bad} of {rate.ratings} ({rate.bad_rate:.0%})"
        for rate in rated[:3]
    )
    message = (
        f"Round {loop.rounds} of loop {loop.id}: {counts['new']} new examples, {counts['old']} old ones, "
        f"{counts['replaced']} replaced{said}"
    )
    data = {"loop": loop.id, "round": loop.rounds, "examples": counts, "rates": [rate.model_dump() for rate in rated]}
    await events.record(db, job, message, data=data)


async def _wait(database: Database, loop_id: str, why: str, *, pause: bool = False, after: timedelta = AGAIN) -> None:
    """Look again later, and say what for; pause: nothing will change by itself."""
    async with database.transaction() as db:
        loop = await db.get(Loop, loop_id, with_for_update=True)
        if loop is None or loop.paused_at is not None:
            return
        now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
        loop.waits_for, loop.next_look_at = why, now + after
        if pause:
            loop.paused_at, loop.paused_reason = now, why
