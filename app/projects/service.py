"""Projects and keys in the database: make, list, change, revoke. A key is known by its sha256 alone; it is shown once, when it is made.

May touch projects, api_keys, signing_secrets and, to delete them, completions. Refusals are ApiErrors, as everywhere.
"""

from __future__ import annotations

import re

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import SUFFICIENT, key_hash, new_key
from app.errors import BadRequest, Conflict, NotFound
from app.models import ApiKey, Completion, Project, SigningSecret, new_id
from finetune.config import S3_URI, nearest

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
"""Of a project: it stands in `ft:` ids between colons."""


async def create_project(db: AsyncSession, name: str, *, path_allow: list[str] | None, webhook_secret: str) -> Project:
    """Make a project.

    Args:
        name: 1 to 40 of a-z, 0-9 and -.
        path_allow: S3 prefixes its jobs may read and write; None for the setting's.
        webhook_secret: `whsec_…`, signs its callbacks.
    Raises:
        BadRequest: `invalid_value`.
        Conflict: `project_exists`.
    """
    if NAME.fullmatch(name) is None:
        raise BadRequest(f"A project's name is 1 to 40 of a-z, 0-9 and -, not {name!r}.", code="invalid_value")
    if (await db.execute(select(Project.id).where(Project.name == name))).first():
        raise Conflict(f"There is a project {name!r} already.", code="project_exists")
    row = Project(id=new_id("proj_"), name=name, path_allow=_checked(path_allow))
    db.add(row)
    await db.flush()
    db.add(SigningSecret(id=new_id("sig_"), project_id=row.id, secret=webhook_secret))
    await db.flush()
    return row


async def set_paths(db: AsyncSession, name: str, path_allow: list[str] | None) -> Project:
    """Change which S3 prefixes a project's jobs may read and write; None for the setting's. Jobs accepted before keep theirs.

    Raises:
        BadRequest: `invalid_value`.
        NotFound: `project_not_found`.
    """
    row = await find_project(db, name)
    row.path_allow = _checked(path_allow)
    await db.flush()
    return row


async def projects(db: AsyncSession) -> list[Project]:
    """Every project, oldest first."""
    return list((await db.execute(select(Project).order_by(Project.created_at))).scalars())


async def find_project(db: AsyncSession, name: str) -> Project:
    """The project of a name.

    Raises:
        NotFound: `project_not_found`, with the nearest name.
    """
    known = {row.name: row for row in await projects(db)}
    if name in known:
        return known[name]
    near = nearest(name, list(known))
    hint = f"did you mean {near!r}?" if near else f"there are {', '.join(known) or 'none'}."
    raise NotFound(f"There is no project {name!r}; {hint}", code="project_not_found")


async def create_key(db: AsyncSession, project: str, *, name: str, scopes: list[str]) -> tuple[ApiKey, str]:
    """Make a key of a project.

    Returns:
        The row, and the key itself, which nobody can read again.
    Raises:
        BadRequest: `invalid_value`: no such scope.
        NotFound: `project_not_found`.
    """
    if not scopes or (wrong := [scope for scope in scopes if scope not in SUFFICIENT]):
        given = wrong[0] if scopes else ""
        raise BadRequest(f"Scopes are {', '.join(SUFFICIENT)}, not {given!r}.", code="invalid_value")
    owner, key = await find_project(db, project), new_key()
    row = ApiKey(
        id=new_id("key_"), project_id=owner.id, name=name, hash=key_hash(key), scopes=list(dict.fromkeys(scopes))
    )
    db.add(row)
    await db.flush()
    return row, key


async def keys(db: AsyncSession, project: str | None) -> list[tuple[ApiKey, str]]:
    """Keys with their project's name, oldest first, revoked ones too; of one project, or of all."""
    query = select(ApiKey, Project.name).join(Project, Project.id == ApiKey.project_id).order_by(ApiKey.created_at)
    if project is not None:
        query = query.where(ApiKey.project_id == (await find_project(db, project)).id)
    return [(row, name) for row, name in (await db.execute(query)).all()]


async def keep_completions(db: AsyncSession, key_id: str, days: float) -> ApiKey:
    """Keep the chat completions of a key for so many days, from the next one on; with 0 none, and those it kept are deleted.

    Raises:
        NotFound: `key_not_found`.
    """
    row = await db.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"There is no key {key_id!r}; `llamaflow keys list` shows their ids.", code="key_not_found")
    row.keep_completions = round(days * 86400) or None
    if row.keep_completions is None:
        await db.execute(delete(Completion).where(Completion.api_key_id == key_id))
    await db.flush()
    return row


async def revoke(db: AsyncSession, key_id: str) -> ApiKey:
    """End a key; the next request with it is refused. What it started goes on.

    Raises:
        NotFound: `key_not_found`.
    """
    row = await db.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"There is no key {key_id!r}; `llamaflow keys list` shows their ids.", code="key_not_found")
    if row.revoked_at is None:
        row.revoked_at = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    await db.flush()
    return row


async def is_locked(db: AsyncSession) -> bool:
    """Whether there is a key at all: without one nobody can use the service, and it is not meant to be reached yet."""
    return (await db.execute(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1))).first() is not None


def _checked(path_allow: list[str] | None) -> list[str] | None:
    for prefix in path_allow or []:
        if S3_URI.fullmatch(prefix) is None:
            raise BadRequest(f"{prefix!r} is no S3 prefix such as s3://bucket/folder/.", code="invalid_value")
    return path_allow
