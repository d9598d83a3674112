"""/v1/uploads: a large file in parts, as the official clients send it."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from app.auth import Writer
from app.db import Database, Session
from app.errors import ApiError, BadRequest
from app.files import upload, uploads
from app.files.schemas import FileObject
from app.files.storage import Storage
from app.limits import Incoming, is_upload, too_large
from app.models import File, new_id
from app.models import Upload as Row
from app.rates import Rates
from app.settings import Settings
from finetune.config import Spec

router = APIRouter(prefix="/v1/uploads", tags=["Files"])

PART: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {"data": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class UploadCreate(Spec):
    """A file that will come in parts."""

    filename: str = Field(description="Its name.", min_length=1, max_length=1024)
    purpose: Literal["fine-tune", "fine-tune-results"] = Field(description="What it is for.")
    bytes: int = Field(description="Its size; the parts must come to it.", ge=0)
    mime_type: str = Field("application/octet-stream", description="Taken and not looked at.", max_length=256)


class UploadComplete(Spec):
    """Which parts make the file."""

    part_ids: list[str] = Field(description="The parts in their order.", max_length=uploads.MOST_PARTS)
    md5: str | None = Field(None, description="Of the whole file, in hexadecimal.", pattern=r"^[0-9a-fA-F]{32}$")


class Upload(BaseModel):
    """An upload."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None

    @classmethod
    def of(cls, row: Row, status: Any, file: File | None = None) -> Upload:
        """A row as clients see it."""
        return cls(
            id=row.id, bytes=row.bytes, created_at=int(row.created_at.timestamp()),
            expires_at=int(row.expires_at.timestamp()), filename=row.filename, purpose=row.purpose, status=status,
            file=FileObject.of(file) if file else None,
        )  # fmt: skip


class UploadPart(BaseModel):
    """A part that has come."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


@router.post("", summary="Begin an upload in parts", response_model=Upload)
async def create_upload(body: UploadCreate, caller: Writer, db: Session, request: Request) -> Upload:
    """Announce a file that comes in parts of up to 64 MiB; it has to be completed within a day."""
    settings: Settings = request.app.state.settings
    if body.bytes > settings.max_upload_bytes:
        raise too_large(settings.max_upload_bytes, "A file")
    name = upload.safe_filename(body.filename)
    row = await uploads.begin(db, caller, settings, filename=name, purpose=body.purpose, size=body.bytes)
    return Upload.of(row, uploads.PENDING)


@router.post("/{upload_id}/parts", summary="Add a part", response_model=UploadPart, openapi_extra=PART)
async def add_upload_part(upload_id: str, caller: Writer, request: Request) -> UploadPart:
    """Send a part as a multipart form (`data`). Parts may come at once and in any order."""
    settings: Settings = request.app.state.settings
    database: Database = request.app.state.database
    storage: Storage = request.app.state.storage
    rates: Rates = request.app.state.rates
    async with database.transaction() as db:
        row = await uploads.find_open(db, caller, upload_id)
    if not is_upload(request.scope):
        raise BadRequest("A part is sent as multipart/form-data with the field data.", code="invalid_multipart")
    part_id, incoming = new_id("part_"), Incoming(request.receive, settings.stall_seconds)
    uri, kind = uploads.part_uri(settings, row, part_id), request.headers["content-type"]
    with rates.uploading(caller.key_id):
        try:
            size = await upload.receive_part(incoming, kind, storage, uri, max_bytes=uploads.PART_BYTES)
        except ApiError:
            await incoming.drain()
            raise
    try:
        async with database.transaction() as db:
            part = await uploads.add_part(db, caller, upload_id, part_id=part_id, size=size)
    except Exception:
        await storage.delete(uri)
        raise
    return UploadPart(id=part.id, created_at=int(part.created_at.timestamp()), upload_id=upload_id)


@router.post("/{upload_id}/complete", summary="Make a file of the parts", response_model=Upload)
async def complete_upload(upload_id: str, body: UploadComplete, caller: Writer, request: Request) -> Upload:
    """Put the parts together in the order of `part_ids`; the file is in `file`, ready to be used."""
    state = request.app.state
    with state.rates.uploading(caller.key_id):
        row, file = await uploads.complete(
            state.database, state.storage, state.settings, caller, upload_id, body.part_ids, body.md5
        )
    return Upload.of(row, uploads.COMPLETED, file)


@router.post("/{upload_id}/cancel", summary="Cancel an upload", response_model=Upload)
async def cancel_upload(upload_id: str, caller: Writer, request: Request) -> Upload:
    """End an upload; its parts are removed."""
    state = request.app.state
    row = await uploads.cancel(state.database, state.storage, state.settings, caller, upload_id)
    return Upload.of(row, uploads.CANCELLED)
