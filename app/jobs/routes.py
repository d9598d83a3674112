"""/v1/fine_tuning/jobs: create, list, get, checkpoints, stages. Actions, logs and events have their own files."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import service as adapters
from app.auth import Reader, Writer
from app.db import Database, Session
from app.errors import BadRequest
from app.jobs import checks, estimate, schemas, service, view
from app.models import Job
from app.pages import After, limit, page
from app.settings import Settings
from finetune.estimate.result import Estimate

router = APIRouter(prefix="/v1/fine_tuning", tags=["Fine-tuning jobs"])

ETAGS = re.compile(r'"[^"]*"')
"""The tags of If-None-Match; a weak one (`W/"…"`) is as good, says RFC 9110."""
METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
IdempotencyKey = Annotated[
    str | None,
    Header(description="The same key and body within 24 h answer the same job; another body is a 409.", max_length=255),
]
RetryCount = Annotated[int, Header(alias="x-stainless-retry-count", include_in_schema=False)]


@router.post("/jobs", summary="Create a job", response_model=schemas.Job, status_code=201)
async def create_job(
    body: schemas.JobCreate,
    caller: Writer,
    request: Request,
    idempotency_key: IdempotencyKey = None,
    retry_count: RetryCount = 0,
) -> Response:
    """Fine-tune a model on a dataset. Answers at once; follow the job by its events, or wait for the callback."""
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    key, body = idempotency_key or None, checks.limited(body, settings)
    if retry_count == 0 and (plain := checks.plain(caller, body, settings)) is not None:
        job = await service.create_at_once(database, caller, body, plain, key=key, most=settings.max_open_jobs)
        if job is not None:
            return created(view.job(job, None, None))
    async with request.app.state.creating, database.transaction() as db:
        job = await service.earlier(db, caller, body, key=key, retried=retry_count > 0)
        if job is not None:
            return created((await shown(db, [job]))[0], replayed=True)
        checked = await checks.at_once(db, caller, body, request.app.state.storage, settings)
        return created(view.job(await service.create(db, caller, body, checked, key=key), None, None))


@router.get("/jobs", summary="List jobs", response_model=schemas.JobPage)
async def list_jobs(
    request: Request, caller: Reader, db: Session, after: After = None, limit: int = limit(20, 1000)
) -> Any:
    """The project's jobs, newest first. `metadata[key]=value` keeps those that have the pair, `metadata=null` those without any."""
    rows, more = await service.listed(db, caller, after=after, limit=limit, metadata=_metadata(request))
    return page(await shown(db, rows), more)


@router.get("/jobs/{job_id}", summary="Get a job", response_model=schemas.Job)
async def get_job(
    job_id: str, caller: Reader, db: Session, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """One job. With `If-None-Match` an unchanged one is a 304."""
    answer = JSONResponse((await shown(db, [await service.find(db, caller, job_id)]))[0].model_dump(mode="json"))
    etag = f'"{hashlib.sha256(answer.body).hexdigest()[:32]}"'
    if if_none_match is not None and (if_none_match.strip() == "*" or etag in ETAGS.findall(if_none_match)):
        return Response(status_code=304, headers={"etag": etag})
    answer.headers["etag"] = etag
    return answer


@router.get("/jobs/{job_id}/checkpoints", summary="List checkpoints", response_model=schemas.CheckpointPage)
async def list_checkpoints(
    job_id: str, caller: Reader, db: Session, after: After = None, limit: int = limit(10, 1000)
) -> Any:
    """A job's checkpoints, newest first."""
    job = await service.find(db, caller, job_id)
    rows, more = await service.checkpoints(db, job, after=after, limit=limit)
    return page([view.checkpoint(row, job, caller.project_name) for row in rows], more)


@router.get("/jobs/{job_id}/stages", summary="List stages", response_model=schemas.StagePage)
async def list_stages(job_id: str, caller: Reader, db: Session) -> Any:
    """The tasks of a job's runs, oldest first, each attempt of its own."""
    rows = await service.stages(db, await service.find(db, caller, job_id))
    return page([view.stage(row, run) for row, run in rows], False)


@router.post("/jobs/estimate", summary="Estimate a job", response_model=Estimate)
async def estimate_job(body: schemas.JobCreate, caller: Writer, request: Request) -> Estimate:
    """What a job would take: rows, tokens, steps, memory, time and cost, each as a range. Nothing is created and nothing is run.

    At most 2,000 rows are read. What would be refused at once is refused here; what would fail the job stands in `error`.
    """
    state = request.app.state
    with state.rates.estimating(caller.key_id):
        return await estimate.estimate(state.database, state.storage, state.settings, caller, body, state.creating)


@router.api_route("/sweeps", methods=["GET", "POST"], include_in_schema=False)
async def not_yet(caller: Reader) -> None:
    """What clients may ask for and a later version offers."""
    raise BadRequest(
        "This is not offered yet; see docs/roadmap.md.",
        code="unsupported_operation",
    )


async def shown(db: AsyncSession, rows: list[Job]) -> list[schemas.Job]:
    """Jobs with what else clients see of them."""
    ids = [row.id for row in rows]
    named, runs = await adapters.of_jobs(db, ids), await service.runs(db, ids)
    return [view.job(row, named.get(row.id), runs.get(row.id)) for row in rows]


def created(job: schemas.Job, *, replayed: bool = False) -> Response:
    """The 201 of a job, rendered once; whether it was there before stands in a header."""
    headers = {"idempotent-replayed": "true"} if replayed else None
    return Response(job.model_dump_json(), status_code=201, media_type="application/json", headers=headers)


def _metadata(request: Request) -> dict[str, str] | None:
    """`metadata[k]=v` pairs of the query; None for `metadata=null`."""
    pairs = request.query_params.multi_items()
    if ("metadata", "null") in pairs:
        return None
    return {match[1]: value for name, value in pairs if (match := METADATA.fullmatch(name))}
