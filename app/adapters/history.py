"""What an adapter's name answered with, one row a change: who, when, from which version to which, why. The only writer of `promoted_version`.

Kept by name, also when the adapter is deleted: another one of that name goes on counting. Owes `adapter.promoted` to the
endpoints of the project, in the transaction of the change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Adapter, AdapterVersion, ApiKey, Promotion, new_id
from app.pages import cut, unknown_cursor

Kind = Literal["job", "import", "request", "rollback", "deletion"]
REMEMBERED = 1000
"""Changes that a rollback looks back over."""


@dataclass(frozen=True)
class Actor:
    """Who changed it: a key, or the end of a job."""

    key_id: str | None = None
    job_id: str | None = None


async def record(db: AsyncSession, adapter: Adapter, to: int | None, kind: Kind, by: Actor, reason: str) -> Promotion:
    """Let an adapter's name answer with another version from now on.

    Args:
        db: The transaction; it holds the adapter's row lock.
        to: None: with none.
    """
    last = await newest(db, adapter.project_id, adapter.name)
    row = Promotion(
        id=new_id("promo_"), project_id=adapter.project_id, adapter=adapter.name,
        number=last.number + 1 if last else 1, kind=kind, from_version=adapter.promoted_version, to_version=to,
        last_version=adapter.last_version, api_key_id=by.key_id, job_id=by.job_id, reason=reason,
    )  # fmt: skip
    adapter.promoted_version = to
    if to is not None:
        adapter.combination = None  # from now on the name is the version's
    db.add(row)
    await db.flush()
    return row


async def newest(db: AsyncSession, project_id: str, name: str) -> Promotion | None:
    """The last change of a name; None if there was none."""
    query = select(Promotion).where(Promotion.project_id == project_id, Promotion.adapter == name)
    return (await db.execute(query.order_by(Promotion.number.desc()).limit(1))).scalar_one_or_none()


async def listed(
    db: AsyncSession, project_id: str, name: str, *, after: str | None, limit: int
) -> tuple[list[tuple[Promotion, str | None]], bool]:
    """A page of a name's changes, newest first, each with the name of the key that made it; and whether there are more."""
    query = select(Promotion, ApiKey.name).outerjoin(ApiKey, ApiKey.id == Promotion.api_key_id)
    query = query.where(Promotion.project_id == project_id, Promotion.adapter == name)
    if after is not None:
        last = await db.get(Promotion, after)
        if last is None or (last.project_id, last.adapter) != (project_id, name):
            raise unknown_cursor(after)
        query = query.where(Promotion.number < last.number)
    found = await db.execute(query.order_by(Promotion.number.desc()).limit(limit + 1))
    return cut([(row, key) for row, key in found], limit)


async def before(db: AsyncSession, adapter: Adapter) -> int | None:
    """The version that a rollback goes to: the one promoted before, of those that are still there and can be served."""
    mine = (Promotion.project_id == adapter.project_id, Promotion.adapter == adapter.name)
    rows = select(Promotion.kind, Promotion.to_version).where(*mine).order_by(Promotion.number.desc()).limit(REMEMBERED)
    changes = [(kind, to) for kind, to in (await db.execute(rows)).all()]
    usable = (AdapterVersion.adapter_id == adapter.id, AdapterVersion.unservable.is_(None))
    there = set((await db.execute(select(AdapterVersion.version).where(*usable))).scalars())
    return previous(reversed(changes), {version for version in there if version}, adapter.promoted_version)


def previous(changes: Iterable[tuple[str, int | None]], there: set[int], now: int | None) -> int | None:
    """Where a rollback goes: versions lie one on another as they were promoted, and a rollback takes the uppermost away.

    Args:
        changes: Kind and version of each change, oldest first.
        there: Versions that can be gone back to.
        now: The promoted one.
    """
    pile: list[int] = []
    for kind, to in changes:
        if to is None:
            continue
        if kind == "rollback":
            while pile and pile[-1] != to:
                pile.pop()
        if not pile or pile[-1] != to:
            pile.append(to)
    if pile and pile[-1] == now:
        pile.pop()
    return next((version for version in reversed(pile) if version in there and version != now), None)
