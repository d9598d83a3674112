"""/v1/loops: an adapter that is trained again as feedback comes in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from app.auth import Reader, Writer
from app.db import Session
from app.loops import schemas, service
from app.pages import After, limit, page

router = APIRouter(prefix="/v1/loops", tags=["Loops"])


@router.post("", summary="Create a loop", response_model=schemas.Loop)
async def create_loop(body: schemas.LoopCreate, caller: Writer, db: Session) -> schemas.Loop:
    """Train an adapter again when there are enough corrections, and promote what passes the gate. One loop an adapter."""
    return await service.shown(db, await service.create(db, caller, body))


@router.get("", summary="List loops", response_model=schemas.LoopPage)
async def list_loops(caller: Reader, db: Session, after: After = None, limit: int = limit(20, 100)) -> Any:
    """The project's loops, newest first."""
    rows, more = await service.listed(db, caller, after=after, limit=limit)
    return page([await service.shown(db, row) for row in rows], more)


@router.get("/{loop_id}", summary="Get a loop", response_model=schemas.Loop)
async def get_loop(loop_id: str, caller: Reader, db: Session) -> schemas.Loop:
    """A loop, what it waits for, and its rounds."""
    return await service.shown(db, await service.find(db, caller, loop_id))


@router.post("/{loop_id}/pause", summary="Pause a loop", response_model=schemas.Loop)
async def pause_loop(loop_id: str, caller: Writer, db: Session) -> schemas.Loop:
    """Begin no more rounds. A job under way goes on."""
    return await service.shown(db, await service.pause(db, caller, loop_id))


@router.post("/{loop_id}/resume", summary="Resume a loop", response_model=schemas.Loop)
async def resume_loop(loop_id: str, caller: Writer, db: Session) -> schemas.Loop:
    """Begin rounds again; from now on with this key."""
    return await service.shown(db, await service.resume(db, caller, loop_id))


@router.delete("/{loop_id}", summary="Delete a loop", response_model=schemas.LoopDeleted)
async def delete_loop(loop_id: str, caller: Writer, db: Session) -> schemas.LoopDeleted:
    """Forget a loop. Its jobs and versions stay."""
    await db.delete(await service.find(db, caller, loop_id, lock=True))
    return schemas.LoopDeleted(id=loop_id)
