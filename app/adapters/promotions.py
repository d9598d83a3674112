"""Promotion and rollback: which version a name answers with, changed as compare-and-set.

May touch adapters and promotions; what follows outside the database (the pointer on S3) is the caller's, after the commit.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import history, service
from app.adapters.history import Actor, Kind
from app.auth import Caller
from app.errors import Conflict
from app.models import Adapter, AdapterVersion
from app.webhooks import outbox


class Anything:
    """No version in particular is expected to be promoted."""


ANYTHING = Anything()


async def promote(
    db: AsyncSession, caller: Caller, name: str, version: int, *, expected: int | Anything | None, reason: str
) -> Adapter:
    """Let a name answer with a version. One that is promoted already stays so, and nothing is recorded.

    Args:
        expected: The version that is replaced; None: none is promoted.
    Raises:
        NotFound: `adapter_not_found`, `version_not_found`.
        Conflict: `stale_promotion`: another one than `expected` is promoted; `model_unservable`.
    """
    adapter = await service.lock(db, caller.project_id, name)
    row = await service.version_of(db, adapter, version)
    if adapter.promoted_version == version:
        return adapter
    _expect(adapter, expected)
    await change(db, adapter, row, "request", Actor(key_id=caller.key_id), reason)
    return adapter


async def rollback(
    db: AsyncSession, caller: Caller, name: str, *, expected: int | Anything | None, reason: str
) -> Adapter:
    """Let a name answer with the version that was promoted before.

    Raises:
        NotFound: `adapter_not_found`.
        Conflict: `stale_promotion`; `nothing_to_roll_back_to`.
    """
    adapter = await service.lock(db, caller.project_id, name)
    _expect(adapter, expected)
    to = await history.before(db, adapter)
    if to is None:
        message = f"No other version of {name} was promoted before that is still there. Promote one by its number."
        raise Conflict(message, code="nothing_to_roll_back_to")
    row = await service.version_of(db, adapter, to)
    await change(db, adapter, row, "rollback", Actor(key_id=caller.key_id), reason)
    return adapter


async def change(
    db: AsyncSession, adapter: Adapter, version: AdapterVersion, kind: Kind, by: Actor, reason: str
) -> None:
    """Promote a version of a locked adapter, and owe the event to the endpoints that want it.

    Raises:
        Conflict: `model_unservable`.
    """
    if version.unservable is not None:
        message = f"Version {version.version} of {adapter.name} cannot be served: {version.unservable}"
        raise Conflict(message, code="model_unservable")
    row = await history.record(db, adapter, version.version, kind, by, reason)
    told = {"from_version": row.from_version, "kind": kind, "reason": reason}
    data = {"id": adapter.id, "object": "adapter", "adapter": service.as_told(adapter, version) | told}
    await outbox.tell(db, adapter.project_id, "adapter.promoted", data)


def _expect(adapter: Adapter, expected: int | Anything | None) -> None:
    if isinstance(expected, Anything) or expected == adapter.promoted_version:
        return
    now = f"version {adapter.promoted_version}" if adapter.promoted_version else "no version"
    was = f"version {expected}" if expected else "none"
    message = f"{now.capitalize()} of {adapter.name} is promoted, not {was} as expected. Look again, then decide."
    raise Conflict(message, code="stale_promotion", param="expected")
