"""/v1/files: upload (multipart, streamed to S3) or register (JSON), list, get, content, delete."""

from __future__ import annotations

import json
from typing import Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from app.auth import Caller, Reader, Writer
from app.db import Database, Session
from app.errors import ApiError, BadRequest
from app.files import service, upload
from app.files.schemas import FileDeleted, FileObject, FilePage, FileRegister
from app.files.storage import Storage
from app.limits import Incoming, is_upload
from app.models import File, new_id
from app.pages import After, limit, page
from app.rates import Rates
from app.settings import Settings
from app.validation import refuse, unstorable

router = APIRouter(prefix="/v1/files", tags=["Files"])

MOST_FILES = 10_000
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "purpose": {"type": "string", "enum": ["fine-tune", "fine-tune-results"]},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            },
            "application/json": {"schema": FileRegister.model_json_schema()},
        },
    }
}


@router.post("", summary="Upload a file, or register an object on S3", response_model=FileObject, openapi_extra=BODY)
async def create_file(request: Request, caller: Writer) -> FileObject:
    """Upload a dataset as multipart form (`purpose`, `file`), or name one on S3 as JSON (`s3_uri`, `purpose`).

    Uploads are streamed to S3 as they come; a file is ready to be used as soon as this answers.
    """
    if not is_upload(request.scope):
        return FileObject.of(await _register(request, caller))
    rates: Rates = request.app.state.rates
    with rates.uploading(caller.key_id):
        return FileObject.of(await _upload(request, caller))


@router.get("", summary="List files", response_model=FilePage)
async def list_files(
    caller: Reader,
    db: Session,
    after: After = None,
    limit: int = limit(MOST_FILES, MOST_FILES),
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Any:
    """The project's files, newest first unless `order=asc`."""
    rows, more = await service.listed(db, caller, after=after, limit=limit, order=order, purpose=purpose)
    return page([FileObject.of(row) for row in rows], more)


@router.get("/{file_id}", summary="Get a file", response_model=FileObject)
async def get_file(file_id: str, caller: Reader, db: Session) -> FileObject:
    """One file, without its content."""
    return FileObject.of(await service.find(db, caller, file_id))


@router.get("/{file_id}/content", summary="Get a file's content", response_class=StreamingResponse)
async def get_file_content(file_id: str, caller: Reader, request: Request) -> StreamingResponse:
    """The bytes, streamed from S3 as they are."""
    async with _database(request).transaction() as db:
        row = await service.find(db, caller, file_id)
    found, chunks = await _storage(request).read(row.uri)
    disposition = f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}"
    headers = {"content-length": str(found.size), "content-disposition": disposition}
    return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


@router.delete("/{file_id}", summary="Delete a file", response_model=FileDeleted)
async def delete_file(file_id: str, caller: Writer, request: Request) -> FileDeleted:
    """Forget a file. An uploaded one is removed from S3; an object that was registered stays where it is."""
    database = _database(request)
    async with database.transaction() as db:
        row = await service.find(db, caller, file_id)
    if row.owned:
        await _storage(request).delete(row.uri)
    async with database.transaction() as db:
        await service.delete(db, caller, file_id)
    return FileDeleted(id=file_id)


async def _upload(request: Request, caller: Caller) -> File:
    """Stream first, record then: a row never names bytes that are not there."""
    settings: Settings = request.app.state.settings
    file_id = new_id("file-")
    beside = f"{settings.files_prefix.rstrip('/')}/{caller.project_id}/{file_id}"
    storage, incoming = _storage(request), Incoming(request.receive, settings.stall_seconds)
    try:
        done = await upload.receive(
            incoming,
            request.headers["content-type"],
            storage,
            beside,
            max_bytes=settings.max_upload_bytes,
        )
    except ApiError:
        await incoming.drain()
        raise
    try:
        async with _database(request).transaction() as db:
            return await service.add(
                db, caller, filename=done.filename, purpose=done.purpose, size=done.size, uri=beside,
                etag=done.etag, sha256=done.sha256, owned=True, id=file_id,
            )  # fmt: skip
    except Exception:
        await storage.delete(beside)
        raise


async def _register(request: Request, caller: Caller) -> File:
    settings: Settings = request.app.state.settings
    body = await _json(request)
    async with _database(request).transaction() as db:
        await service.allow(db, caller, settings, body.s3_uri, param="s3_uri")
    if body.s3_uri.endswith("/"):
        raise BadRequest("s3_uri must name one object, not a folder.", code="invalid_value", param="s3_uri")
    found = await _storage(request).head(body.s3_uri, param="s3_uri")
    async with _database(request).transaction() as db:
        return await service.add(
            db, caller, filename=upload.safe_filename(body.s3_uri), purpose=body.purpose, size=found.size,
            uri=found.uri, etag=found.etag, owned=False,
        )  # fmt: skip


async def _json(request: Request) -> FileRegister:
    """The JSON body; every mistake is told as for the routes that FastAPI reads."""
    raw = await request.body()
    try:
        decoded = json.loads(raw) if raw else None
        unstorable(decoded)
        return FileRegister.model_validate(decoded)
    except ValidationError as problem:
        errors = [{**error, "loc": ("body", *error["loc"])} for error in problem.errors()]
        raise refuse(errors, decoded, FileRegister) from None
    except json.JSONDecodeError as problem:
        where = {"type": "json_invalid", "loc": ("body", problem.pos), "ctx": {"error": problem.msg}}
        raise RequestValidationError([where], body=problem.doc) from None
    except (UnicodeDecodeError, RecursionError):
        raise BadRequest("The body is no valid JSON.", code="invalid_json") from None


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _storage(request: Request) -> Storage:
    storage: Storage = request.app.state.storage
    return storage
