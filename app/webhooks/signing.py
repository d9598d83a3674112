"""Signing secrets: a project's, for callbacks of its jobs, and one an endpoint. Made, shown, rotated.

While a secret is rotated both sign, newest first. May touch signing_secrets alone.
"""

from __future__ import annotations

import base64
import secrets
from datetime import timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import SigningSecret, new_id

OLD_VALID = timedelta(hours=24)


def new_webhook_secret() -> str:
    """`whsec_` and base64 of 64 hex characters: text, because some receivers (n8n's Crypto node) take no other bytes."""
    return "whsec_" + base64.b64encode(secrets.token_hex(32).encode()).decode()


async def valid(db: AsyncSession, project_id: str, endpoint_id: str | None) -> list[str]:
    """Every secret that signs now, newest first."""
    query = select(SigningSecret.secret).where(
        SigningSecret.project_id == project_id,
        SigningSecret.endpoint_id.is_not_distinct_from(endpoint_id),
        or_(SigningSecret.expires_at.is_(None), SigningSecret.expires_at > func.clock_timestamp()),
    )
    return list((await db.execute(query.order_by(SigningSecret.created_at.desc()))).scalars())


async def rotate(db: AsyncSession, project_id: str, endpoint_id: str | None, *, keep_old: bool) -> str:
    """Make a new secret; the first one, too.

    Args:
        keep_old: The one until now signs for 24 more hours; else it ends at once.
    """
    mine = (
        SigningSecret.project_id == project_id,
        SigningSecret.endpoint_id.is_not_distinct_from(endpoint_id),
    )
    now = func.clock_timestamp()
    if keep_old:
        old = update(SigningSecret).where(*mine, SigningSecret.expires_at.is_(None))
        await db.execute(old.values(expires_at=now + OLD_VALID))
    else:
        valid_yet = or_(SigningSecret.expires_at.is_(None), SigningSecret.expires_at > now)
        await db.execute(update(SigningSecret).where(*mine, valid_yet).values(expires_at=now))
    made = new_webhook_secret()
    db.add(SigningSecret(id=new_id("sig_"), project_id=project_id, endpoint_id=endpoint_id, secret=made))
    await db.flush()
    return made


async def newest(db: AsyncSession, endpoint_ids: list[str]) -> dict[str | None, str]:
    """Endpoint → its newest secret."""
    query = select(SigningSecret.endpoint_id, SigningSecret.secret).where(SigningSecret.endpoint_id.in_(endpoint_ids))
    rows = (await db.execute(query.order_by(SigningSecret.created_at))).all()
    return {row.endpoint_id: row.secret for row in rows}


async def forget(db: AsyncSession, endpoint_id: str) -> None:
    """Remove what an endpoint that is gone was signed with."""
    await db.execute(delete(SigningSecret).where(SigningSecret.endpoint_id == endpoint_id))
