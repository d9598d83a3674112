"""Jobs: create once, find, list. Every change of status goes through lifecycle.py; what is asked of a job later, intents.py.

Refuses before it writes; commits nothing, knows no HTTP, no network and no clock but the database's.
"""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta

from sqlalchemy import ColumnElement, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.db import Database, rows
from app.errors import Conflict, NotFound
from app.events import service as events
from app.jobs import lifecycle
from app.jobs.accept import Guard
from app.jobs.checks import Checked, Plain
from app.jobs.schemas import JobCreate
from app.models import Checkpoint, Job, Run, Stage, new_id
from app.pages import cut, of_project, unknown_cursor
from finetune.steps import ModelSource

KEY_KEPT = timedelta(hours=24)
RETRY_WINDOW = timedelta(minutes=10)

_LOCK = "select pg_advisory_xact_lock(hashtextextended(name, 0)) from unnest(%(names)s::text[]) name"


def request_hash(body: JobCreate, of: str | None = None) -> str:
    """sha256 of a request in canonical form: equal requests, equal hash. of: the job that it retries."""
    canonical = json.dumps(body.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256((canonical if of is None else f"{of} {canonical}").encode()).hexdigest()


async def earlier(
    db: AsyncSession, caller: Caller, body: JobCreate, *, key: str | None, retried: bool, of: str | None = None
) -> Job | None:
    """The job that this very request made before, if it did.

    Takes locks that hold to the end of the transaction, so that of equal requests at once one creates and the others find.

    Args:
        key: Idempotency-Key: the same key and body within 24 hours are the same request.
        retried: The client says it sent this before (it does so without a key): an equal body of the same API key within
            10 minutes is the same request.
        of: The job that the request retries.
    Raises:
        Conflict: `idempotency_conflict`: the key came with another body.
    """
    hashed = request_hash(body, of)
    await rows(db, _LOCK, {"names": _locks(caller, hashed, key)})
    if key is not None:
        return await _by_key(db, caller, key, hashed)
    if not retried:
        return None
    query = select(Job).where(
        Job.api_key_id == caller.key_id,
        Job.request_hash == hashed,
        Job.created_at > func.clock_timestamp() - RETRY_WINDOW,
    )
    return (await db.execute(query.order_by(Job.created_at.desc()).limit(1))).scalar_one_or_none()


def _locks(caller: Caller, hashed: str, key: str | None) -> list[str]:
    """The names under which equal requests wait for each other."""
    by_key = [] if key is None else [f"job-key:{caller.project_id}:{key}"]
    return [*by_key, f"job-body:{caller.key_id}:{hashed}"]


async def _by_key(db: AsyncSession, caller: Caller, key: str, hashed: str) -> Job | None:
    mine = (Job.project_id == caller.project_id, Job.idempotency_key == key)
    old = update(Job).where(*mine, Job.created_at <= func.clock_timestamp() - KEY_KEPT).values(idempotency_key=None)
    await db.execute(old.execution_options(synchronize_session=False))
    job = (await db.execute(select(Job).where(*mine))).scalar_one_or_none()
    if job is not None and job.request_hash != hashed:
        raise Conflict(
            f"This Idempotency-Key was used for {job.id} with another body. Use a new key for a new job.",
            code="idempotency_conflict",
        )
    return job


async def create(
    db: AsyncSession, caller: Caller, body: JobCreate, checked: Checked, *, key: str | None, of: str | None = None
) -> Job:
    """Accept a checked job: its row, its first events, and word to the workers. of: the job that it retries."""
    job = _made(caller, body, checked.base, key=key, of=of)
    await lifecycle.created(db, job)
    for warning in checked.warnings:
        await events.record(db, job, warning, level="warn")
    return job


async def create_at_once(
    database: Database, caller: Caller, body: JobCreate, plain: Plain, *, key: str | None, most: int
) -> Job | None:
    """Accept a job of which nothing but the table is left to be asked, by one statement.

    Its locks are those of `earlier`, so that an equal request sent again while this one is under way waits and finds it.

    Args:
        most: Jobs of the caller's key that have not ended must be fewer.
    Returns:
        None if that could not be done so: the job was made before, or is to be refused. Nothing was written then.
    """
    job = _made(caller, body, plain.base, key=key, of=None)
    guard = Guard(_locks(caller, job.request_hash, key), plain.files, most)
    return job if await lifecycle.created_at_once(database, job, guard) else None


def _made(caller: Caller, body: JobCreate, base: ModelSource, *, key: str | None, of: str | None) -> Job:
    return Job(
        id=new_id("ftjob-"),
        project_id=caller.project_id,
        api_key_id=caller.key_id,
        spec=body.spec(),
        model=body.model,
        base=base.model_dump(mode="json"),
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        seed=body.seed,
        job_metadata=body.metadata,
        priority=body.execution.priority,
        callback_url=body.callback_url,
        callback_events=body.callback_events,
        result_files=[],
        idempotency_key=key,
        request_hash=request_hash(body, of),
        retry_of=of,
    )


async def find(db: AsyncSession, caller: Caller, job_id: str) -> Job:
    """A job of the caller's project.

    Raises:
        NotFound: `job_not_found`: not there, or another project's.
    """
    job = await db.get(Job, job_id)
    if job is None or job.project_id != caller.project_id:
        raise NotFound(f"There is no fine-tuning job {job_id!r}.", code="job_not_found")
    return job


async def listed(
    db: AsyncSession, caller: Caller, *, after: str | None, limit: int, metadata: dict[str, str] | None
) -> tuple[list[Job], bool]:
    """A page of the project's jobs, newest first, and whether there are more.

    Args:
        metadata: Pairs a job must have; empty for any job, None for jobs without metadata.
    """
    return await of_project(db, Job, caller.project_id, *_with_metadata(metadata), after=after, limit=limit)


def _with_metadata(metadata: dict[str, str] | None) -> list[ColumnElement[bool]]:
    if metadata is None:
        empty = literal({}, JSONB)
        return [
            or_(
                Job.job_metadata.is_(None),
                func.coalesce(func.nullif(Job.job_metadata, literal(None, JSONB)), empty) == empty,
            )
        ]
    return [Job.job_metadata.contains(metadata)] if metadata else []


def output_prefix(job: Job) -> str:
    """The S3 prefix that is this job's alone, with a slash at its end."""
    path: str = job.spec["output"]["path"]
    return f"{path.rstrip('/')}/{job.id}/"


async def runs(db: AsyncSession, job_ids: list[str]) -> dict[str, Run]:
    """Job id → its newest run."""
    query = select(Run).where(Run.job_id.in_(job_ids)).order_by(Run.job_id, Run.attempt)
    return {run.job_id: run for run in (await db.execute(query)).scalars()}


async def runs_of(db: AsyncSession, job: Job) -> list[Run]:
    """A job's runs, oldest first."""
    return list((await db.execute(select(Run).where(Run.job_id == job.id).order_by(Run.attempt))).scalars())


async def stages(db: AsyncSession, job: Job) -> list[tuple[Stage, int]]:
    """A job's stages, oldest first, each with the number of its run."""
    query = select(Stage, Run.attempt).join(Run, Run.id == Stage.run_id).where(Stage.job_id == job.id)
    ordered = query.order_by(Stage.created_at, Stage.id)
    return [(stage, attempt) for stage, attempt in (await db.execute(ordered)).all()]


async def checkpoints(db: AsyncSession, job: Job, *, after: str | None, limit: int) -> tuple[list[Checkpoint], bool]:
    """A page of a job's checkpoints, newest first, and whether there are more."""
    query = select(Checkpoint).where(Checkpoint.job_id == job.id)
    if after is not None:
        last = await db.get(Checkpoint, after)
        if last is None or last.job_id != job.id:
            raise unknown_cursor(after)
        query = query.where(Checkpoint.step_number < last.step_number)
    newest = query.order_by(Checkpoint.step_number.desc()).limit(limit + 1)
    return cut((await db.execute(newest)).scalars().all(), limit)
