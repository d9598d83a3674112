"""Who calls: bearer keys `lf-…`, their project and scopes, as annotated dependencies for routes.

A key is looked up by one statement of its own, so that uploads and streamed answers hold no connection while they run.
May touch projects, api_keys and signing_secrets, nothing else.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.errors import Forbidden, Unauthenticated
from app.models import ApiKey, Project, SigningSecret, new_id
from app.rates import Rates

DEFAULT_PROJECT = "default"
BOOTSTRAP_KEY = "llamaflow up"
OLD_SECRET_VALID = timedelta(hours=24)

SUFFICIENT: dict[str, frozenset[str]] = {
    "read": frozenset({"read", "write", "admin"}),
    "write": frozenset({"write", "admin"}),
    "admin": frozenset({"admin"}),
}
"""Scope asked for → scopes that have it."""

bearer = HTTPBearer(
    auto_error=False, scheme_name="API key", description="A key `lf-…`; `make up` writes one to `.llamaflow/api_key`."
)


@dataclass(frozen=True)
class Caller:
    """A request's project and what its key may do.

    Attributes:
        project_id: Whose rows are visible.
        project_name: As it stands in `ft:` ids.
        key_id: The key's row.
        scopes: read, write, admin.
        path_allow: S3 prefixes its jobs may read and write; None means the setting's.
        keep_completions: Seconds for which its chat completions are kept; None: none are.
    """

    project_id: str
    project_name: str
    key_id: str
    scopes: frozenset[str]
    path_allow: list[str] | None
    keep_completions: int | None = None


def key_hash(key: str) -> str:
    """What of a key is stored: its sha256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh key: `lf-` + 43 URL-safe characters (256 bits)."""
    return "lf-" + secrets.token_urlsafe(32)


_FIND = """
    select k.id, k.project_id, k.scopes, p.name, p.path_allow, k.keep_completions from api_keys k join projects p on p.id = k.project_id
    where k.hash = %(hash)s and k.revoked_at is null
"""


async def find(database: Database, key: str) -> Caller:
    """The caller a key stands for.

    Raises:
        Unauthenticated: `invalid_api_key`: not known, or revoked.
    """
    row = await database.first(_FIND, {"hash": key_hash(key)})
    if row is None:
        raise Unauthenticated(
            "The API key is not known here. Check the key behind `Authorization: Bearer`; the embedded service "
            "keeps its own in .llamaflow/api_key.",
            code="invalid_api_key",
        )
    return Caller(
        project_id=row[1],
        project_name=row[3],
        key_id=row[0],
        scopes=frozenset(row[2]),
        path_allow=row[4],
        keep_completions=row[5],
    )


async def authenticate(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Caller:
    """The caller of this request.

    Raises:
        Unauthenticated: `missing_api_key` or `invalid_api_key`.
        TooMany: `rate_limit_exceeded`, or `too_many_unknown_keys` before anything is looked up.
    """
    if given is None or not given.credentials:
        raise Unauthenticated(
            "There is no API key. Send the header `Authorization: Bearer lf-…`.", code="missing_api_key"
        )
    database: Database = request.app.state.database
    rates: Rates = request.app.state.rates
    address, hashed = request.client.host if request.client else "?", key_hash(given.credentials)
    rates.may_try(address, hashed)
    try:
        caller = await find(database, given.credentials)
    except Unauthenticated:
        rates.failed(address)
        raise
    rates.proved(hashed)
    rates.admit(caller.key_id)
    request.state.project = caller.project_name
    return caller


def needs(scope: str) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency that lets callers with `scope` pass."""

    async def allowed(caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if not caller.scopes & SUFFICIENT[scope]:
            raise Forbidden(
                f"This API key may not do that: it needs the scope {scope!r} and has {', '.join(sorted(caller.scopes))}.",
                code="insufficient_scope",
            )
        return caller

    return allowed


Reader = Annotated[Caller, Depends(needs("read"))]
Writer = Annotated[Caller, Depends(needs("write"))]
Admin = Annotated[Caller, Depends(needs("admin"))]


async def bootstrap(db: AsyncSession, *, api_key: str, webhook_secret: str) -> Project:
    """The project `default` with this key and this signing secret, however often and wherever it is called.

    Args:
        db: The transaction.
        api_key: `lf-…`, with every scope. An earlier bootstrap key is revoked.
        webhook_secret: `whsec_…`, signs the project's callbacks. An earlier one stays valid for 24 hours.
    """
    await db.execute(text("select pg_advisory_xact_lock(hashtext('llamaflow.bootstrap'))"))
    project = (await db.execute(select(Project).where(Project.name == DEFAULT_PROJECT))).scalar_one_or_none()
    if project is None:
        project = Project(id=new_id("proj_"), name=DEFAULT_PROJECT)
        db.add(project)
        await db.flush()
    await _bootstrap_key(db, project.id, key_hash(api_key))
    await _bootstrap_secret(db, project.id, webhook_secret)
    return project


async def _bootstrap_key(db: AsyncSession, project_id: str, hashed: str) -> None:
    await db.execute(
        update(ApiKey)
        .where(
            ApiKey.project_id == project_id,
            ApiKey.name == BOOTSTRAP_KEY,
            ApiKey.hash != hashed,
            ApiKey.revoked_at.is_(None),
        )
        .values(revoked_at=func.clock_timestamp())
    )
    key = (await db.execute(select(ApiKey).where(ApiKey.hash == hashed))).scalar_one_or_none()
    if key is None:
        key = ApiKey(
            id=new_id("key_"),
            project_id=project_id,
            name=BOOTSTRAP_KEY,
            hash=hashed,
            scopes=["read", "write", "admin"],
        )
        db.add(key)
    key.revoked_at = None
    await db.flush()


async def _bootstrap_secret(db: AsyncSession, project_id: str, secret: str) -> None:
    ours = (
        SigningSecret.project_id == project_id,
        SigningSecret.endpoint_id.is_(None),
        SigningSecret.expires_at.is_(None),
    )
    known = (SigningSecret.project_id == project_id, SigningSecret.secret == secret)
    if (await db.execute(select(SigningSecret.id).where(*known))).first():
        return  # also one that a client has rotated away since: the file does not bring it back
    await db.execute(update(SigningSecret).where(*ours).values(expires_at=func.clock_timestamp() + OLD_SECRET_VALID))
    db.add(SigningSecret(id=new_id("sig_"), project_id=project_id, secret=secret))
    await db.flush()
