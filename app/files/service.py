"""Files: rows that name objects on S3. Reads and writes the table only; the bytes are upload.py's and storage.py's."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.db import rows
from app.errors import BadRequest, NotFound
from app.files import paths
from app.models import File, Job, new_id
from app.pages import of_project
from app.settings import Settings


async def add(
    db: AsyncSession,
    caller: Caller,
    *,
    filename: str,
    purpose: str,
    size: int,
    uri: str,
    etag: str | None,
    sha256: str | None = None,
    owned: bool,
    id: str | None = None,
) -> File:
    """Record an object as a file, ready to be used.

    Args:
        owned: It was uploaded through the service, so that it is deleted with its row.
        id: Of a file whose object lies below that id already.
    """
    row = File(
        id=id or new_id("file-"), project_id=caller.project_id, filename=filename, purpose=purpose, bytes=size,
        uri=uri, etag=etag, sha256=sha256, owned=owned, status="processed",
    )  # fmt: skip
    db.add(row)
    await db.flush()
    return row


async def find(db: AsyncSession, caller: Caller, file_id: str) -> File:
    """A file of the caller's project.

    Raises:
        NotFound: `file_not_found`.
    """
    row = await db.get(File, file_id)
    if row is None or row.project_id != caller.project_id:
        raise NotFound(f"There is no file {file_id!r}.", code="file_not_found")
    return row


@dataclass(frozen=True)
class Dataset:
    """A file that a job may train on: its address, and whether it was uploaded through the service."""

    uri: str
    owned: bool


async def dataset(db: AsyncSession, caller: Caller, file_id: str, *, param: str) -> Dataset:
    """A file that a job may train on.

    Raises:
        BadRequest: `file_not_found`; `invalid_value` for a file of another purpose.
    """
    named = {"id": file_id, "project": caller.project_id}
    found = await rows(
        db, "select uri, owned, purpose from files where id = %(id)s and project_id = %(project)s", named
    )
    if not found:
        raise BadRequest(f"There is no file {file_id!r}.", code="file_not_found", param=param)
    uri, owned, purpose = found[0]
    if purpose != "fine-tune":
        raise BadRequest(
            f"The file {file_id} has the purpose {purpose!r}; a dataset needs 'fine-tune'.",
            code="invalid_value",
            param=param,
        )
    return Dataset(uri, owned)


async def listed(
    db: AsyncSession, caller: Caller, *, after: str | None, limit: int, order: str, purpose: str | None
) -> tuple[list[File], bool]:
    """A page of the project's files, and whether there are more.

    Args:
        order: `asc` or `desc` by creation.
    """
    only = [] if purpose is None else [File.purpose == purpose]
    return await of_project(db, File, caller.project_id, *only, after=after, limit=limit, oldest_first=order == "asc")


async def delete(db: AsyncSession, caller: Caller, file_id: str) -> None:
    """Remove a file's row."""
    await db.delete(await find(db, caller, file_id))
    await db.flush()


def allow_prefix(caller: Caller, settings: Settings, uri: str, *, param: str) -> None:
    """Let an address that leads into no job's folder pass, or say why not.

    Raises:
        BadRequest: `invalid_value`, `path_not_allowed`.
    """
    prefixes = settings.path_allow if caller.path_allow is None else caller.path_allow
    paths.allow(uri, prefixes=prefixes, uploads=settings.files_prefix, project_id=caller.project_id, param=param)


async def allow(db: AsyncSession, caller: Caller, settings: Settings, uri: str, *, param: str) -> str:
    """Let an S3 address that a request names pass, or say why not.

    Returns:
        `uri`, unchanged.
    Raises:
        BadRequest: `invalid_value`, `path_not_allowed`.
    """
    allow_prefix(caller, settings, uri, param=param)
    named = paths.jobs_in(uri)
    own = select(func.count()).select_from(Job).where(Job.id.in_(named), Job.project_id == caller.project_id)
    if named and (await db.execute(own)).scalar_one() < len(named):
        raise BadRequest(
            f"{uri} lies in the folder of a job that is none of this project's.", code="path_not_allowed", param=param
        )
    return uri
