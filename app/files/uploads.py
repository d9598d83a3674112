"""Uploads in parts: what was announced, which parts came, and how they become a file. The bytes are upload.py's and storage.py's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.db import Database
from app.errors import BadRequest, Conflict, NotFound
from app.files import service
from app.files.storage import Storage
from app.files.upload import Sink
from app.models import File, Upload, UploadPart, new_id
from app.settings import Settings

PART_BYTES = 64 << 20
"""Of one part at most, as with OpenAI."""
MOST_PARTS = 10_000

PENDING, COMPLETED, CANCELLED, EXPIRED = "pending", "completed", "cancelled", "expired"


def status(row: Upload, now: datetime) -> str:
    """Where an upload stands."""
    if row.file_id is not None:
        return COMPLETED
    if row.cancelled_at is not None:
        return CANCELLED
    return EXPIRED if row.expires_at <= now else PENDING


async def begin(
    db: AsyncSession, caller: Caller, settings: Settings, *, filename: str, purpose: str, size: int
) -> Upload:
    """Announce an upload. It is open for `LLAMAFLOW_KEEP_ORPHANS`; after that its parts are removed."""
    now = await clock(db)
    row = Upload(
        id=new_id("upload_"), project_id=caller.project_id, filename=filename, purpose=purpose, bytes=size,
        created_at=now, expires_at=now + timedelta(seconds=settings.keep_orphans),
    )  # fmt: skip
    db.add(row)
    await db.flush()
    return row


async def find(db: AsyncSession, caller: Caller, upload_id: str, *, lock: bool = False) -> Upload:
    """An upload of the caller's project.

    Raises:
        NotFound: `upload_not_found`.
    """
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == caller.project_id)
    row = (await db.execute(query.with_for_update() if lock else query)).scalar_one_or_none()
    if row is None:
        raise NotFound(f"There is no upload {upload_id!r}.", code="upload_not_found")
    return row


async def find_open(db: AsyncSession, caller: Caller, upload_id: str, *, lock: bool = False) -> Upload:
    """One that still takes parts.

    Raises:
        NotFound: `upload_not_found`.
        Conflict: `upload_not_pending`.
    """
    row = await find(db, caller, upload_id, lock=lock)
    await _require_open(db, row)
    return row


async def add_part(db: AsyncSession, caller: Caller, upload_id: str, *, part_id: str, size: int) -> UploadPart:
    """Record a part that lies on S3.

    Raises:
        Conflict: The upload ended meanwhile.
        BadRequest: `invalid_value`: it has as many parts as it may.
    """
    await find_open(db, caller, upload_id, lock=True)
    there = select(func.count()).select_from(UploadPart).where(UploadPart.upload_id == upload_id)
    if (await db.execute(there)).scalar_one() >= MOST_PARTS:
        raise BadRequest(f"An upload has at most {MOST_PARTS:,} parts; send larger ones.", code="invalid_value")
    row = UploadPart(id=part_id, upload_id=upload_id, bytes=size)
    db.add(row)
    await db.flush()
    return row


async def cancel(database: Database, storage: Storage, settings: Settings, caller: Caller, upload_id: str) -> Upload:
    """End an upload with nothing kept. One that is cancelled stays so."""
    async with database.transaction() as db:
        row = await find(db, caller, upload_id, lock=True)
        if row.cancelled_at is None:
            await _require_open(db, row)
            row.cancelled_at = await clock(db)
    await _clear(database, storage, settings, row)
    return row


async def complete(
    database: Database, storage: Storage, settings: Settings, caller: Caller, upload_id: str,
    part_ids: Sequence[str], md5: str | None,
) -> tuple[Upload, File | None]:  # fmt: skip
    """Make a file of the parts, in the order given. An upload that is complete is returned as it is: a client may ask again.

    Returns:
        The upload, and its file; None once that was deleted.
    Raises:
        NotFound: `upload_not_found`.
        Conflict: `upload_not_pending`.
        BadRequest: `invalid_value`: parts that are not there or do not come to the announced size; another checksum.
    """
    async with database.transaction() as db:
        row = await find(db, caller, upload_id)
        if row.file_id is not None:
            return row, await db.get(File, row.file_id)
        await _require_open(db, row)
        asked = select(UploadPart.id, UploadPart.bytes).where(UploadPart.upload_id == upload_id)
        sizes: dict[str, int] = dict(iter(await db.execute(asked)))
    _check(row, part_ids, sizes)
    file_id = new_id("file-")
    uri = _below(settings, row.project_id, file_id)
    checksum = hashlib.md5(usedforsecurity=False)
    async with Sink(storage, uri, settings.max_upload_bytes) as sink:
        for part in part_ids:
            _, chunks = await storage.read(part_uri(settings, row, part))
            async for chunk in chunks:
                checksum.update(chunk)
                await sink.take(bytearray(chunk))
        if md5 is not None and checksum.hexdigest() != md5.lower():
            raise BadRequest(
                f"The parts have the md5 {checksum.hexdigest()}, not {md5}. Send them again.",
                code="invalid_value",
                param="md5",
            )
        etag = await sink.finish()
    try:
        async with database.transaction() as db:
            locked = await find(db, caller, upload_id, lock=True)
            earlier = await db.get(File, locked.file_id) if locked.file_id is not None else None
            if locked.file_id is None:
                await _require_open(db, locked)
                file = await service.add(
                    db, caller, filename=row.filename, purpose=row.purpose, size=sink.size, uri=uri, etag=etag,
                    sha256=sink.digest.hexdigest(), owned=True, id=file_id,
                )  # fmt: skip
                locked.file_id = file_id
    except Exception:
        await storage.delete(uri)
        raise
    if locked.file_id != file_id:  # asked for twice at once, and the other was quicker
        await storage.delete(uri)
        return locked, earlier
    await _clear(database, storage, settings, locked)
    return locked, file


def part_uri(settings: Settings, row: Upload, part_id: str) -> str:
    """Where a part lies until its upload ends."""
    return _below(settings, row.project_id, f"{row.id}/{part_id}")


async def clock(db: AsyncSession) -> datetime:
    """The database's time."""
    now: datetime = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    return now


async def _require_open(db: AsyncSession, row: Upload) -> None:
    if (stands := status(row, await clock(db))) != PENDING:
        raise Conflict(
            f"The upload {row.id} is {stands}. Begin another one with POST /v1/uploads.", code="upload_not_pending"
        )


def _check(row: Upload, part_ids: Sequence[str], sizes: dict[str, int]) -> None:
    for at, part in enumerate(part_ids):
        if part not in sizes:
            raise BadRequest(f"The upload has no part {part[:80]!r}.", code="invalid_value", param=f"part_ids[{at}]")
    if len(set(part_ids)) < len(part_ids):
        raise BadRequest("part_ids names a part twice.", code="invalid_value", param="part_ids")
    if (came := sum(sizes[part] for part in part_ids)) != row.bytes:
        raise BadRequest(
            f"The parts have {came:,} bytes together, but {row.bytes:,} were announced. Add what is missing, or begin anew.",
            code="invalid_value",
            param="part_ids",
        )


async def _clear(database: Database, storage: Storage, settings: Settings, row: Upload) -> None:
    await storage.clear(_below(settings, row.project_id, f"{row.id}/"))
    async with database.transaction() as db:
        await db.execute(delete(UploadPart).where(UploadPart.upload_id == row.id))


def _below(settings: Settings, project: str, name: str) -> str:
    return f"{settings.files_prefix.rstrip('/')}/{project}/{name}"
