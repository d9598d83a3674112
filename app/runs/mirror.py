"""The state of a training on S3, below its job's own prefix: addresses to read and write it, and the record of what there is.

Objects have their sha256 for a name, so an address given away can never change what is there. Nothing is listed: the record
tells. Knows no tokens.
"""

from __future__ import annotations

import asyncio
import base64

import structlog
from pydantic import ValidationError

from app.errors import ApiError, BadRequest
from app.files.storage import Storage
from app.jobs.service import output_prefix
from app.models import Job
from finetune.mirror import PREFIX, RECORD, Mirror, Piece

URL_SECONDS = 900
RECORD_SECONDS = 15.0
RECORD_BYTES = 1 << 20

log = structlog.get_logger("api.runs")


def prefix(job: Job) -> str:
    """Where the state of a job's training lies, with a slash at its end."""
    return output_prefix(job) + PREFIX


def reading(storage: Storage, job: Job, pieces: list[Piece]) -> dict[str, str]:
    """Addresses, by sha256, from which objects can be read for a quarter of an hour."""
    return {piece.sha256: storage.presigned("get_object", prefix(job) + piece.sha256, URL_SECONDS) for piece in pieces}


def writing(storage: Storage, job: Job, pieces: list[Piece]) -> dict[str, str]:
    """Addresses, by sha256, that take one object each, of just this size; S3 servers that know how check its sha256 too."""
    return {
        piece.sha256: storage.presigned(
            "put_object",
            prefix(job) + piece.sha256,
            URL_SECONDS,
            ContentLength=piece.size,
            ChecksumSHA256=checksum(piece.sha256),
        )
        for piece in pieces
    }


def checksum(sha256: str) -> str:
    """A sha256 as the header x-amz-checksum-sha256 has it, which a writer must send."""
    return base64.b64encode(bytes.fromhex(sha256)).decode()


async def recorded(storage: Storage, job: Job) -> Mirror | None:
    """What there is; None before the first record, or if it is none."""
    try:
        _, chunks = await storage.read(prefix(job) + RECORD)
        content = b"".join([chunk async for chunk in chunks])
        return Mirror.model_validate_json(content)
    except BadRequest as problem:
        if problem.code == "file_not_found":
            return None
        raise
    except ValidationError:
        return None


async def record(storage: Storage, job: Job, mirror: Mirror) -> list[str]:
    """Write the record; every object it names is there. The caller holds the training's lease.

    Returns:
        Addresses of objects that the last record named and this one does not: to be removed by `forget`.
    """
    async with asyncio.timeout(RECORD_SECONDS):
        before = await recorded(storage, job)
        await storage.put(prefix(job) + RECORD, mirror.text().encode())
    kept = {entry.sha256 for entry in mirror.files}
    return sorted(
        {prefix(job) + entry.sha256 for entry in (before.files if before else []) if entry.sha256 not in kept}
    )


async def forget(storage: Storage, uris: list[str]) -> None:
    """Remove objects that no record names any more; what cannot be removed goes with the job's prefix."""
    for uri in uris:
        try:
            await storage.delete(uri)
        except ApiError as problem:
            log.warning("not_removed", uri=uri, error=problem.message)
