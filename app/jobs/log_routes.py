"""/v1/fine_tuning/jobs/{id}/logs: what the tools of a job's run wrote, as text."""

from __future__ import annotations

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.auth import Caller, Reader
from app.db import Database
from app.errors import ApiError, BadRequest
from app.events.stream import Live
from app.jobs import archive, follow, logs, service
from app.jobs.lifecycle import Status
from app.jobs.logs import Source
from app.models import FINAL, Job
from app.settings import Settings

router = APIRouter(prefix="/v1/fine_tuning", tags=["Fine-tuning jobs"])

log = structlog.get_logger("logs")

TEXT = "text/plain"
NEXT = "x-next-offset"
STAGES = ("DOWNLOAD_DATA", "FETCH_MODEL", "PREPARE_DATA", "FINE_TUNE", "EVALUATE", "UPLOAD_MODEL")
"""The processes of pipeline/main.nf."""
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {TEXT: {"schema": {"type": "string"}}},
        "headers": {NEXT: {"description": "With `offset`: where to go on.", "schema": {"type": "integer"}}},
    }
}


@router.get("/jobs/{job_id}/logs", summary="Read logs", response_class=PlainTextResponse, responses=ANSWERS)
async def read_logs(
    job_id: str,
    caller: Reader,
    request: Request,
    stage: Annotated[str | None, Query(description="Such as FINE_TUNE.", max_length=200)] = None,
    tail: Annotated[int | None, Query(description="Only so many lines of the end.", ge=1, le=100_000)] = None,
    live: Annotated[
        bool, Query(alias="follow", description="Go on with each line as it comes, until the job has ended.")
    ] = False,
    offset: Annotated[
        int | None,
        Query(description="Of the newest log of a stage: whole lines from this byte on.", ge=0, le=1 << 62),
    ] = None,
) -> Response:
    """A job's log: of one stage, or of Nextflow and every stage. At most the last MiB; the whole of a longer one is read by `offset`.

    Secrets of the service and what looks like a key or a signature are taken out, and so is what could harm a terminal.
    """
    if offset is not None and (stage is None or live or tail is not None):
        raise BadRequest(
            "offset pages through the log of one stage: give stage, and neither tail nor follow.",
            code="invalid_value",
            param="offset",
        )
    job, found = await _find(request, caller, job_id, stage, follow=live)
    reader = logs.Reader(request.app.state.redactor, over=job.status in (*FINAL, Status.PAUSED))
    if live:

        async def again() -> list[Source]:
            try:
                return (await _find(request, caller, job_id, stage, follow=True))[1]
            except (DBAPIError, PoolTimeout, ApiError, OSError) as problem:  # the next look finds them
                log.warning("logs_not_found", error=type(problem).__name__)
                return found

        content = follow.lines(request.app.state.hub, job.id, caller.key_id, again, reader, tail)
        return Live(content, place=request.app.state.rates.streaming(caller.key_id), media_type=TEXT)
    if offset is not None:
        text, after = await reader.page(found[-1].text, offset)
        return PlainTextResponse(text, headers={NEXT: str(after)})
    return PlainTextResponse(await reader.ending(found, tail))


async def _find(
    request: Request, caller: Caller, job_id: str, stage: str | None, *, follow: bool
) -> tuple[Job, list[Source]]:
    """The job and its logs, wherever they lie. No connection is held while they are read.

    follow: a stage of the pipeline need not have begun.
    """
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    async with database.transaction() as db:
        job = await service.find(db, caller, job_id)
        runs, stages = await service.runs_of(db, job), await service.stages(db, job)
    place: logs.Place = logs.Folder(settings.runs / job.id)
    if job.logs_uri is not None and not (settings.runs / job.id).is_dir():
        place = await archive.find(request.app.state.storage, job.logs_uri)
    found = logs.sources(place, runs, stages)
    if follow and stage is not None and stage.upper() in STAGES:
        return job, [source for source in found if source.stage == stage.upper()]
    return job, logs.of_stage(found, stage)
