"""/v1/imports: the history brought over from another service, read-only once it is complete there."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path

from app.auth import Reader, Writer
from app.db import Session
from app.importing import service
from app.importing.schemas import (
    EventsTaken,
    ImportDeleted,
    Imported,
    ImportEventPage,
    ImportEvents,
    ImportPage,
    ImportPut,
)
from app.pages import After, limit, page

router = APIRouter(prefix="/v1/imports", tags=["Imports"])

SourceId = Annotated[str, Path(description="Its id there.", min_length=1, max_length=256)]


@router.get("", summary="List what was imported", response_model=ImportPage)
async def list_imports(
    caller: Reader,
    db: Session,
    kind: Literal["file", "job"] | None = None,
    after: After = None,
    limit: int = limit(20, 100),
) -> Any:
    """Files and jobs brought from OpenAI by `llamaflow import-openai`, in the order of their ids there."""
    rows, more = await service.listed(db, caller, kind=kind, after=after, limit=limit)
    return page([Imported.of(row) for row in rows], more)


@router.post("", summary="Keep an object of another service", response_model=Imported)
async def put_import(body: ImportPut, caller: Writer, db: Session) -> Imported:
    """Keep a file or a job as another service told it, or what is newly known of it. The same twice changes nothing."""
    return Imported.of(await service.put(db, caller, body))


@router.get("/{source_id}", summary="Get an imported object", response_model=Imported)
async def get_import(source_id: SourceId, caller: Reader, db: Session) -> Imported:
    """A file or a job as it was there."""
    return Imported.of(await service.find(db, caller, source_id))


@router.post("/{source_id}/events", summary="Keep events of an imported job", response_model=EventsTaken)
async def add_import_events(source_id: SourceId, body: ImportEvents, caller: Writer, db: Session) -> EventsTaken:
    """Keep events as they were told, each once by its id."""
    row = await service.find(db, caller, source_id, lock=True)
    return EventsTaken(id=source_id, kept=await service.add_events(db, row, body.events))


@router.get("/{source_id}/events", summary="List events of an imported job", response_model=ImportEventPage)
async def list_import_events(
    source_id: SourceId, caller: Reader, db: Session, after: After = None, limit: int = limit(20, 100)
) -> Any:
    """What was told of the job there, newest first."""
    data, more = await service.events(db, await service.find(db, caller, source_id), after=after, limit=limit)
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": more} | ends


@router.delete("/{source_id}", summary="Forget an imported object", response_model=ImportDeleted)
async def delete_import(source_id: SourceId, caller: Writer, db: Session) -> ImportDeleted:
    """Forget it with its events. Files and jobs that were made of it stay."""
    await service.forget(db, await service.find(db, caller, source_id))
    return ImportDeleted(id=source_id)
