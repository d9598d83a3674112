"""/v1/fine_tuning/jobs/{id}/events: a job's history, newest first, for polling."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.auth import Reader
from app.db import Session
from app.errors import BadRequest
from app.events import service
from app.events.schemas import Event, EventPage
from app.jobs import service as jobs
from app.pages import After, limit, page

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/events", tags=["Fine-tuning jobs"])


@router.get("", summary="List events", response_model=EventPage)
async def list_events(
    job_id: str, caller: Reader, db: Session, after: After = None, limit: int = limit(20, 1000), stream: bool = False
) -> Any:
    """What happened to a job, newest first; `after` asks for older ones."""
    if stream:
        raise BadRequest(
            "A stream of events is not offered yet; poll this list.", code="unsupported_operation", param="stream"
        )
    job = await jobs.find(db, caller, job_id)
    rows, more = await service.listed(db, job, after=after, limit=limit)
    return page([Event.of(row) for row in rows], more)
