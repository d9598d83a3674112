"""Versions and adapters forgotten. What is promoted, or what a job goes on from, is not, unless it is said twice (`force`).

Objects of a job's result stay on S3; those of an import are the service's own, and their prefixes are handed back to be cleared.
"""

from __future__ import annotations

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import history, service
from app.adapters.history import Actor
from app.auth import Caller
from app.errors import Conflict
from app.models import OPEN, Adapter, AdapterVersion, Job


async def version(db: AsyncSession, caller: Caller, row: AdapterVersion, *, force: bool) -> list[str]:
    """Forget a version.

    Args:
        force: Also one that is promoted; its name answers with nothing then.
    Returns:
        S3 prefixes that nobody needs any more.
    Raises:
        Conflict: `version_promoted`, `version_in_use`.
    """
    adapter = await db.get(Adapter, row.adapter_id, with_for_update=True) if row.adapter_id else None
    there = select(AdapterVersion.id).where(AdapterVersion.id == row.id).with_for_update()
    if (await db.execute(there)).scalar_one_or_none() is None:
        return []  # another request has just done it
    await _no_job(db, row)
    if adapter is not None and adapter.promoted_version == row.version:
        if not force:
            message = (
                f"Version {row.version} of {adapter.name} is promoted: its name answers with it. Promote another version "
                f"first (POST /v1/adapters/{adapter.name}/promote, or /rollback), or delete it with ?force=true."
            )
            raise Conflict(message, code="version_promoted")
        await history.record(
            db, adapter, None, "deletion", Actor(key_id=caller.key_id), f"version {row.version} deleted"
        )
    await db.delete(row)
    await db.flush()
    return _owned([row])


async def adapter(db: AsyncSession, caller: Caller, name: str, *, force: bool) -> list[str]:
    """Forget an adapter with all its versions. The history of its name stays, and numbers go on from there.

    Returns:
        S3 prefixes that nobody needs any more.
    Raises:
        NotFound: `adapter_not_found`.
        Conflict: `adapter_promoted`, `version_in_use`.
    """
    row = await service.lock(db, caller.project_id, name)
    if row.promoted_version is not None and not force:
        message = f"Version {row.promoted_version} of {name} is promoted. Delete the adapter with ?force=true if nobody needs it."
        raise Conflict(message, code="adapter_promoted")
    versions = list((await db.execute(select(AdapterVersion).where(AdapterVersion.adapter_id == row.id))).scalars())
    for one in versions:
        await _no_job(db, one)
    await history.record(db, row, None, "deletion", Actor(key_id=caller.key_id), "adapter deleted")
    for one in versions:
        await db.delete(one)
    await db.flush()
    await db.delete(row)
    await db.flush()
    return _owned(versions)


async def _no_job(db: AsyncSession, row: AdapterVersion) -> None:
    """Refuse while a job that has not ended goes on from the version."""
    manifest = row.uri.rstrip("/") + "/manifest.json"
    goes_on = Job.base["parent"]["manifest_uri"].astext == manifest
    query = select(Job.id).where(Job.project_id == row.project_id, text(OPEN), goes_on).limit(1)
    if job := (await db.execute(query)).scalar_one_or_none():
        message = f"The job {job} goes on from {row.model}. Wait until it has ended, or cancel it."
        raise Conflict(message, code="version_in_use")


def _owned(rows: list[AdapterVersion]) -> list[str]:
    return [row.uri for row in rows if row.imported_from is not None]
