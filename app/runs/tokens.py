"""Run tokens: issued when a run is launched whose tasks share no disk, good for that run alone, revoked when it is closed.

Only the hash is stored. A token is no API key: neither opens what the other does. May touch run_tokens, and read runs and jobs.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import key_hash
from app.errors import Unauthenticated
from app.models import Job, Run, RunToken, new_id

PREFIX = "run-"


@dataclass(frozen=True)
class Held:
    """A token that holds: its row, and the job its run is of."""

    token: RunToken
    job: Job


def new_token() -> str:
    """A fresh token: `run-` + 43 URL-safe characters (256 bits)."""
    return PREFIX + secrets.token_urlsafe(32)


async def issue(db: AsyncSession, run: Run, seconds: float) -> str:
    """A token for a run. Tokens of the job's earlier runs end here, should one of them still hold.

    Args:
        db: The transaction.
        run: Its row is there.
        seconds: Until it expires, unless it is renewed.
    """
    await _revoke(db, RunToken.job_id == run.job_id)
    token = new_token()
    row = RunToken(
        id=new_id("rtok_"), project_id=run.project_id, job_id=run.job_id, run_id=run.id, hash=key_hash(token),
        expires_at=func.clock_timestamp() + _interval(seconds),
    )  # fmt: skip
    db.add(row)
    await db.flush()
    return token


async def revoke(db: AsyncSession, run_id: str) -> None:
    """A run is over: its token opens nothing any more. Waits for requests that are being served by it."""
    await _revoke(db, RunToken.run_id == run_id)


async def renew(db: AsyncSession, run_id: str, seconds: float) -> None:
    """Let a run's token hold for `seconds` from now, unless it is revoked. Writes only when half of that is gone."""
    soon = RunToken.expires_at < func.clock_timestamp() + _interval(seconds / 2)
    mine = update(RunToken).where(RunToken.run_id == run_id, RunToken.revoked_at.is_(None), soon)
    await db.execute(mine.values(expires_at=func.clock_timestamp() + _interval(seconds)))


async def ask(db: AsyncSession, run_id: str, intent: str | None) -> None:
    """Leave a wish for the run's training, which hears it with its next heartbeat; None takes it back."""
    changed = RunToken.intent.is_distinct_from(intent)
    await db.execute(update(RunToken).where(RunToken.run_id == run_id, changed).values(intent=intent))


async def find(db: AsyncSession, token: str, *, alone: bool = False) -> Held:
    """Who a token stands for; it cannot be revoked before the transaction has ended.

    Args:
        db: The transaction.
        token: As sent.
        alone: Lock the row for writing.
    Raises:
        Unauthenticated: `invalid_run_token`: not known, expired, or its run is over.
    """
    query = select(RunToken).where(
        RunToken.hash == key_hash(token),
        RunToken.revoked_at.is_(None),
        RunToken.expires_at > func.clock_timestamp(),
    )
    row = (await db.execute(query.with_for_update(read=not alone))).scalar_one_or_none()
    if row is None:
        raise Unauthenticated("This run token is not known here, or its run is over.", code="invalid_run_token")
    return Held(row, await db.get_one(Job, row.job_id))


async def _revoke(db: AsyncSession, which: object) -> None:
    holding = update(RunToken).where(which, RunToken.revoked_at.is_(None))  # type: ignore[arg-type]
    await db.execute(holding.values(revoked_at=func.clock_timestamp()))


def _interval(seconds: float) -> object:
    return func.make_interval(0, 0, 0, 0, 0, 0, seconds)
