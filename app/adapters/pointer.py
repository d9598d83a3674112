"""`current.json` on S3: which version a name answers with, for those who read S3 and not the API.

At `<files prefix>/<project id>/adapters/<name>/current.json`, where no other project may write. Written after the commit of a
promotion; the database is the truth. Whoever writes looks again afterwards, so that of several the last one's word stays. What
a crash or an outage of S3 leaves behind, `llamaflow doctor --repair` mends.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import history, service
from app.db import Database
from app.errors import NotFound
from app.files.storage import connect, split
from app.models import Adapter, Promotion
from app.settings import Settings
from finetune.exit_codes import StepError
from finetune.s3 import errors

POINTER_BYTES = 1 << 16
TURNS = 5
"""So often it is written again when the promotion has changed meanwhile; the one who changed it writes too."""

log = structlog.get_logger("adapters")


def home(settings: Settings, project_id: str, name: str) -> str:
    """Where on S3 the service keeps what is an adapter's: the pointer, and imported versions."""
    return f"{settings.files_prefix.rstrip('/')}/{project_id}/adapters/{name}/"


def address(settings: Settings, project_id: str, name: str) -> str:
    """Where a name's pointer lies."""
    return home(settings, project_id, name) + "current.json"


async def content(db: AsyncSession, adapter: Adapter) -> bytes:
    """What the pointer of an adapter is to say, byte for byte."""
    version = await service.promoted(db, adapter)
    last: Promotion | None = await history.newest(db, adapter.project_id, adapter.name)
    told: dict[str, Any] = {
        "object": "adapter.current",
        "name": adapter.name,
        "promotion": last.number if last else 0,
        "promoted_at": int(last.created_at.timestamp()) if last else None,
        "version": version.version if version else None,
    }
    if adapter.combination is not None:
        told["combination"] = adapter.combination
    if version is not None:
        uri = version.uri.rstrip("/") + "/"
        told |= {
            "model": version.model,
            "uri": uri,
            "adapter": f"{uri}adapter/",
            "manifest_sha256": version.manifest_sha256,
            "base": {key: version.base.get(key) for key in ("id", "kind", "location", "revision")},
        }
    return (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()


async def write(database: Database, settings: Settings, project_id: str, name: str) -> None:
    """Let the pointer of a name say what the database says; remove that of a deleted adapter. A failure is logged, not raised."""
    written: bytes | None
    uri, written = address(settings, project_id, name), None
    try:
        for _ in range(TURNS):
            wanted = await _wanted(database, project_id, name)
            if wanted == written:
                return
            await asyncio.to_thread(put, settings, uri, wanted)
            written = wanted
    except (BotoCoreError, ClientError, SQLAlchemyError, OSError) as problem:
        log.warning("pointer_not_written", uri=uri, error=type(problem).__name__)


async def write_of_job(database: Database, settings: Settings, project_id: str, job_id: str) -> None:
    """After a project's job has ended: the pointer of the adapter that it made a version of, if any."""
    try:
        async with database.transaction() as db:
            found = await service.of_jobs(db, [job_id])
    except (SQLAlchemyError, OSError) as problem:
        log.warning("pointer_not_written", job=job_id, error=type(problem).__name__)
        return
    if job_id in found:
        await write(database, settings, project_id, found[job_id][0])


async def _wanted(database: Database, project_id: str, name: str) -> bytes:
    async with database.transaction() as db:
        try:
            return await content(db, await service.get(db, project_id, name))
        except NotFound:
            return b""


def put(settings: Settings, uri: str, body: bytes) -> None:
    """Write the pointer, or with nothing to say remove it. Blocking."""
    bucket, key = split(uri)
    s3 = connect(settings)
    if body:
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json")
    else:
        s3.delete_object(Bucket=bucket, Key=key)


def read(settings: Settings, uri: str) -> bytes:
    """What a pointer says now; nothing where there is none. Blocking.

    Raises:
        StepError: `s3_unavailable`, `access_denied`.
    """
    bucket, key = split(uri)
    try:
        with errors(uri):
            return connect(settings).get_object(Bucket=bucket, Key=key)["Body"].read(POINTER_BYTES)
    except StepError as problem:
        if problem.code.name == "file_not_found":
            return b""
        raise
