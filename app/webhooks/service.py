"""Endpoints of a project: made, changed, ended. What is owed to them is written by outbox.py, what became of it read by log.py.

May touch webhook_endpoints, their secrets, and deliveries that are still owed; sends nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.errors import BadRequest, NotFound
from app.models import WebhookDelivery, WebhookEndpoint, new_id
from app.pages import of_project
from app.webhooks import signing
from app.webhooks.schemas import EndpointCreate, EndpointUpdate
from app.webhooks.target import host_of

MOST = 50
"""Endpoints of a project: each event is written once for every one that wants it."""

RETRY_WINDOW = timedelta(minutes=10)
BY_USER = "Disabled by a request."


async def create(
    db: AsyncSession, caller: Caller, body: EndpointCreate, *, retried: bool
) -> tuple[WebhookEndpoint, str]:
    """Make an endpoint whose URL was checked; its row and its secret.

    Args:
        retried: The client says it sent this before: an equal one made within 10 minutes is the same.
    Raises:
        BadRequest: `too_many_endpoints`.
    """
    locked = text("select pg_advisory_xact_lock(hashtextextended(:name, 0))")
    await db.execute(locked, {"name": f"webhook-endpoints:{caller.project_id}"})
    mine = (WebhookEndpoint.project_id == caller.project_id, WebhookEndpoint.deleted_at.is_(None))
    if retried and (made := await _equal(db, caller, body)) is not None:
        return made, (await signing.newest(db, [made.id]))[made.id]
    if (await db.execute(select(func.count()).where(*mine))).scalar_one() >= MOST:
        raise BadRequest(f"A project has at most {MOST} endpoints; delete one first.", code="too_many_endpoints")
    row = WebhookEndpoint(
        id=new_id("whe_"),
        project_id=caller.project_id,
        name=body.name,
        url=body.url,
        event_types=_once(body.event_types),
    )
    db.add(row)
    await db.flush()
    return row, await signing.rotate(db, caller.project_id, row.id, keep_old=False)


async def _equal(db: AsyncSession, caller: Caller, body: EndpointCreate) -> WebhookEndpoint | None:
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.project_id == caller.project_id,
        WebhookEndpoint.deleted_at.is_(None),
        WebhookEndpoint.created_at > func.clock_timestamp() - RETRY_WINDOW,
        WebhookEndpoint.name == body.name,
        WebhookEndpoint.url == body.url,
        WebhookEndpoint.event_types == _once(body.event_types),
    )
    return (await db.execute(query.order_by(WebhookEndpoint.created_at.desc()).limit(1))).scalar_one_or_none()


def _once(event_types: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(event_types))


async def find(db: AsyncSession, caller: Caller, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    """An endpoint of the caller's project.

    Raises:
        NotFound: `webhook_endpoint_not_found`: not there, deleted, or another project's.
    """
    row = await db.get(WebhookEndpoint, endpoint_id, with_for_update=lock or None)
    if row is None or row.project_id != caller.project_id or row.deleted_at is not None:
        raise NotFound(f"There is no webhook endpoint {endpoint_id!r}.", code="webhook_endpoint_not_found")
    return row


async def listed(
    db: AsyncSession, caller: Caller, *, after: str | None, limit: int
) -> tuple[list[WebhookEndpoint], bool]:
    """A page of the project's endpoints, newest first, and whether there are more."""
    there = WebhookEndpoint.deleted_at.is_(None)
    return await of_project(db, WebhookEndpoint, caller.project_id, there, after=after, limit=limit)


async def change(db: AsyncSession, caller: Caller, endpoint_id: str, body: EndpointUpdate) -> WebhookEndpoint:
    """Change an endpoint. A new URL, checked before, is also where what is owed goes, and lets it be told again."""
    row = await find(db, caller, endpoint_id, lock=True)
    before = (row.name, row.url, list(row.event_types), row.disabled_at)
    moved = body.url is not None and body.url != row.url
    row.name = body.name or row.name
    row.event_types = _once(body.event_types) if body.event_types else row.event_types
    if body.url is not None and moved:
        row.url = body.url
        owed = update(WebhookDelivery).where(WebhookDelivery.endpoint_id == row.id, WebhookDelivery.status == "pending")
        await db.execute(owed.values(url=body.url, host=host_of(body.url)))
    if body.enabled or (moved and body.enabled is None):
        row.disabled_at = row.disabled_reason = None
    if body.enabled is False and row.disabled_at is None:
        await _end(db, row, BY_USER)
    if before != (row.name, row.url, row.event_types, row.disabled_at):
        await _touch(db, row)
    return row


async def delete(db: AsyncSession, caller: Caller, endpoint_id: str) -> None:
    """Delete an endpoint and its secrets. The log of what it was told stays; what was still owed is dead."""
    row = await find(db, caller, endpoint_id, lock=True)
    await _end(db, row, "Deleted.")
    row.deleted_at = row.disabled_at
    await signing.forget(db, row.id)
    await db.flush()


async def rotate(db: AsyncSession, caller: Caller, endpoint_id: str, *, keep_old: bool) -> tuple[WebhookEndpoint, str]:
    """Give an endpoint a new secret; its row and the secret."""
    row = await find(db, caller, endpoint_id, lock=True)
    secret = await signing.rotate(db, caller.project_id, row.id, keep_old=keep_old)
    await _touch(db, row)
    return row, secret


async def _end(db: AsyncSession, row: WebhookEndpoint, why: str) -> None:
    now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    row.disabled_at, row.disabled_reason = row.disabled_at or now, row.disabled_reason or why
    owed = update(WebhookDelivery).where(WebhookDelivery.endpoint_id == row.id, WebhookDelivery.status == "pending")
    await db.execute(owed.values(status="dead", finished_at=now, claimed_until=None))


async def _touch(db: AsyncSession, row: WebhookEndpoint) -> None:
    row.updated_at = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    await db.flush()
