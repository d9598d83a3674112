"""progress.jsonl of a training that shares no disk: whole lines by their place in the file, sent once however often they come."""

from __future__ import annotations

import json

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import BadRequest, Conflict
from app.models import RunLines

PAGE_BYTES = 1 << 20
MOST_BYTES = 1 << 30
"""Of one job's progress.jsonl."""


async def append(db: AsyncSession, job_id: str, start: int, content: bytes) -> int:
    """Take lines that stand at byte `start` of the file. The caller holds the training's lease, so nobody else appends.

    Returns:
        Where the file ends now: the sender goes on there. What was there before is not written again.
    Raises:
        BadRequest: `invalid_value`: not whole lines of JSON objects.
        Conflict: `lines_missing`: there is a gap before `start`.
    """
    end = await ending(db, job_id)
    if start > end:
        raise Conflict(f"The file ends at byte {end}, these lines stand at byte {start}.", code="lines_missing")
    if start < end:
        return end
    _check(content)
    if end + len(content) > MOST_BYTES:
        raise BadRequest(f"progress.jsonl may have {MOST_BYTES:,} bytes.", code="invalid_value", param="text")
    if content:
        db.add(RunLines(job_id=job_id, start=start, until=start + len(content), content=content))
        await db.flush()
    return start + len(content)


async def ending(db: AsyncSession, job_id: str) -> int:
    """Bytes of a job's file."""
    found = select(func.coalesce(func.max(RunLines.until), 0)).where(RunLines.job_id == job_id)
    return int((await db.execute(found)).scalar_one())


async def read(db: AsyncSession, job_id: str, start: int) -> bytes:
    """The file from byte `start` on: some whole pieces; nothing when there is no more."""
    query = select(RunLines).where(RunLines.job_id == job_id, RunLines.until > start).order_by(RunLines.start)
    found, size = [], 0
    for row in (await db.execute(query.limit(PAGE_BYTES // 1024))).scalars():
        found.append(row.content[max(0, start - row.start) :])
        size += len(found[-1])
        if size >= PAGE_BYTES:
            break
    return b"".join(found)


def _check(content: bytes) -> None:
    if content and not content.endswith(b"\n"):
        raise BadRequest("The last line has no end.", code="invalid_value", param="text")
    for line in content.splitlines():
        try:
            good = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            good = False
        if not good:
            raise BadRequest("Each line has to be a JSON object.", code="invalid_value", param="text")
