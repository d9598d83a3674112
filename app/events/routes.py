"""/v1/fine_tuning/jobs/{id}/events: a job's history, newest first for polling, or as a live stream, oldest first."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from app.auth import Reader
from app.db import Session
from app.events import service, stream
from app.events.schemas import Event, EventPage
from app.jobs import service as jobs
from app.pages import After, limit, page

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/events", tags=["Fine-tuning jobs"])

STREAM = "text/event-stream"
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": EventPage,
        "description": "A page of events; as a stream, server-sent events: `id` the event's number, `event` its type, "
        "`data` the event, and `data: [DONE]` behind the terminal one.",
        "content": {STREAM: {"schema": {"type": "string"}}},
    }
}


@router.get("", summary="List or stream events", response_model=EventPage, responses=ANSWERS)
async def list_events(
    job_id: str,
    caller: Reader,
    request: Request,
    db: Session,
    after: After = None,
    limit: int = limit(20, 1000),
    live: Annotated[
        bool | None, Query(alias="stream", description="A live stream; so does `Accept: text/event-stream`.")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="Resume a stream behind this number.")] = None,
) -> Any:
    """What happened to a job, newest first; `after` asks for older ones.

    As a stream, oldest first and then as it happens until the job has ended. Cut, it is resumed without loss or doubling by
    `Last-Event-ID`, the `id` of the last event that came (or `after`, an event's own id).
    """
    job = await jobs.find(db, caller, job_id)
    if live is False or (live is None and not accepts_stream(request.headers.get("accept", ""))):
        rows, more = await service.listed(db, job, after=after, limit=limit)
        return page([Event.of(row) for row in rows], more)
    seen = await service.number(db, job, last_event_id=last_event_id, after=after)
    return _live(request.app.state, job.id, caller.key_id, seen)


def _live(state: Any, job_id: str, key_id: str, seen: int) -> Response:
    content = stream.told(state.hub, job_id, key_id, after=seen)
    return stream.Live(content, place=state.rates.streaming(key_id), media_type=STREAM)


def accepts_stream(accept: str) -> bool:
    """Whether an Accept header names server-sent events."""
    return any(part.partition(";")[0].strip().lower() == STREAM for part in accept.split(","))
