"""/healthz says that the process answers, /readyz whether what it needs does: database, migrations, S3, each by name."""

from __future__ import annotations

import asyncio
from typing import Any

from alembic.script import ScriptDirectory
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from app.db import Database
from app.errors import ApiError
from app.files.storage import Storage, split
from app.settings import Settings

router = APIRouter(tags=["Health"])

SECONDS = 4.0


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    """Always ok while the process answers; nothing else is asked."""
    return {"status": "ok"}


@router.get(
    "/readyz", summary="Can requests be served?", responses={503: {"description": "Something is down; see which."}}
)
async def readyz(request: Request) -> JSONResponse:
    """Each part by name, with a sentence; 503 if one is down."""
    settings: Settings = request.app.state.settings
    database, s3 = await asyncio.gather(_database(request.app.state.database), _s3(request.app.state.storage, settings))
    parts = {**database, **s3}
    ready = all(part["ok"] for part in parts.values())
    return JSONResponse(
        {"status": "ok" if ready else "unavailable", **parts},
        status_code=200 if ready else 503,
        headers={} if ready else {"retry-after": "2"},
    )


async def _database(database: Database) -> dict[str, dict[str, Any]]:
    head = ScriptDirectory.from_config(migrations.config("")).get_current_head()
    try:
        async with asyncio.timeout(SECONDS), database.transaction() as db:
            there = (await db.execute(text("select to_regclass('alembic_version')"))).scalar_one()
            found = (await db.execute(text("select version_num from alembic_version"))).scalar() if there else None
    except (SQLAlchemyError, OSError, TimeoutError) as problem:
        why = _part(False, f"The database does not answer ({type(problem).__name__}).")
        return {"database": why, "migrations": _part(False, "Not known: the database does not answer.")}
    at_head = found == head
    said = f"At {found}." if at_head else f"At {found or 'nothing'}, not {head}: run `llamaflow migrate`."
    return {"database": _part(True, "Answers."), "migrations": _part(at_head, said)}


async def _s3(storage: Storage, settings: Settings) -> dict[str, dict[str, Any]]:
    bucket = split(settings.files_prefix)[0]
    try:
        async with asyncio.timeout(SECONDS):
            await storage.bucket(bucket)
    except ApiError as problem:
        return {"s3": _part(False, problem.message)}
    except TimeoutError:
        return {"s3": _part(False, f"S3 did not answer within {SECONDS:.0f} s.")}
    return {"s3": _part(True, f"Answers; the bucket {bucket} is there.")}


def _part(ok: bool, message: str) -> dict[str, Any]:
    return {"ok": ok, "message": message}
