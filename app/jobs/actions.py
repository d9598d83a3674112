"""/v1/fine_tuning/jobs/{id}/cancel, pause, resume, retry: what a client does with a job that is there."""

from __future__ import annotations

import asyncio

import structlog
from fastapi import APIRouter, Request, Response

from app.auth import Writer
from app.db import Database, Session
from app.errors import BadRequest, Unavailable
from app.files.storage import Storage
from app.jobs import checks, intents, retry, schemas, service, view
from app.jobs.routes import IdempotencyKey, RetryCount, shown
from app.models import Job
from app.settings import Settings

router = APIRouter(prefix="/v1/fine_tuning", tags=["Fine-tuning jobs"])

REMOVE_SECONDS = 20.0
log = structlog.get_logger("api.jobs")


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", response_model=schemas.Job)
async def cancel_job(job_id: str, caller: Writer, request: Request) -> schemas.Job:
    """Ask for a job to end. It is `cancelled` at once, or as soon as its run has stopped; nothing of it is kept."""
    database: Database = request.app.state.database
    async with database.transaction() as db:
        job = await intents.cancel(db, caller, job_id)
        if not intents.awaits_removal(job):
            return (await shown(db, [job]))[0]
    gone = await _remove(request.app.state.storage, job)
    async with database.transaction() as db:
        job = await intents.removed(db, job_id) if gone else await service.find(db, caller, job_id)
        return (await shown(db, [job]))[0]


@router.post("/jobs/{job_id}/pause", summary="Pause a job", response_model=schemas.Job)
async def pause_job(job_id: str, caller: Writer, db: Session) -> schemas.Job:
    """Ask for a job to be paused. A training under way saves a checkpoint first; then the job is `paused` and its slot is free."""
    return (await shown(db, [await intents.pause(db, caller, job_id)]))[0]


@router.post("/jobs/{job_id}/resume", summary="Resume a job", response_model=schemas.Job)
async def resume_job(job_id: str, caller: Writer, db: Session) -> schemas.Job:
    """Let a paused job go on where it was. A pause that is still being settled is withdrawn."""
    return (await shown(db, [await intents.resume(db, caller, job_id)]))[0]


@router.post("/jobs/{job_id}/retry", summary="Retry a job", response_model=schemas.Job, status_code=201)
async def retry_job(
    job_id: str,
    caller: Writer,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    retry_count: RetryCount = 0,
) -> schemas.Job:
    """Make a new job of one that failed or was cancelled: the same body, checked anew, from its last checkpoint where that fits."""
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    key = idempotency_key or None
    async with request.app.state.creating, database.transaction() as db:
        old = await service.find(db, caller, job_id)
        body = retry.body(old)
        job = await service.earlier(db, caller, body, key=key, retried=retry_count > 0, of=old.id)
        if job is not None:
            response.headers["idempotent-replayed"] = "true"
            return (await shown(db, [job]))[0]
        checked = await checks.at_once(db, caller, body, request.app.state.storage, settings)
        job = await service.create(db, caller, body, checked, key=key, of=old.id)
        await retry.tell(db, old, job)
        return view.job(job, None, None)


async def _remove(storage: Storage, job: Job) -> bool:
    """Remove what runs of a job put on S3; False while S3 is away, and then a worker does it."""
    try:
        async with asyncio.timeout(REMOVE_SECONDS):
            await storage.clear(service.output_prefix(job))
    except (Unavailable, TimeoutError) as problem:
        log.warning("not_removed", job=job.id, error=str(problem))
        return False
    except BadRequest as problem:  # no such bucket, or no right to remove: then nothing was put there either
        log.warning("nothing_removed", job=job.id, error=problem.message)
    return True
