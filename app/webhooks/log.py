"""What became of deliveries: listed with their attempts, and asked for again.

May touch webhook_deliveries and delivery_attempts; sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.db import CHANNEL_DELIVERIES
from app.errors import Conflict, NotFound
from app.models import DeliveryAttempt, WebhookDelivery, WebhookEndpoint
from app.pages import of_project
from app.webhooks import breaker
from app.webhooks.target import host_of


@dataclass(frozen=True)
class Entry:
    """A delivery, its attempts, oldest first, and until when an open breaker holds its host."""

    row: WebhookDelivery
    attempts: list[DeliveryAttempt]
    held_until: datetime | None


async def listed(
    db: AsyncSession, caller: Caller, *only: ColumnElement[bool], after: str | None, limit: int
) -> tuple[list[Entry], bool]:
    """A page of the project's deliveries, newest first, and whether there are more; only: what else must hold."""
    rows, more = await of_project(db, WebhookDelivery, caller.project_id, *only, after=after, limit=limit)
    return await entries(db, rows), more


async def find(db: AsyncSession, caller: Caller, delivery_id: str, *, lock: bool = False) -> WebhookDelivery:
    """A delivery of the caller's project.

    Raises:
        NotFound: `webhook_delivery_not_found`: not there, or another project's.
    """
    row = await db.get(WebhookDelivery, delivery_id, with_for_update=lock or None)
    if row is None or row.project_id != caller.project_id:
        raise NotFound(f"There is no webhook delivery {delivery_id!r}.", code="webhook_delivery_not_found")
    return row


async def again(db: AsyncSession, caller: Caller, delivery_id: str) -> WebhookDelivery:
    """Send a delivery again, whatever became of it: the same bytes and id, the schedule from its start.

    To an endpoint it goes to the URL that is the endpoint's now. One that is under way is left to end.

    Raises:
        Conflict: `webhook_endpoint_disabled`: its endpoint wants no more.
    """
    row = await find(db, caller, delivery_id, lock=True)
    endpoint = await db.get(WebhookEndpoint, row.endpoint_id) if row.endpoint_id else None
    if endpoint is not None and (endpoint.disabled_at or endpoint.deleted_at):
        gone = "deleted" if endpoint.deleted_at else "disabled; enable it first"
        raise Conflict(f"The endpoint {endpoint.id} is {gone}.", code="webhook_endpoint_disabled")
    now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    if row.claimed_until is not None and row.claimed_until > now:
        return row
    if endpoint is not None and endpoint.url != row.url:
        row.url, row.host = endpoint.url, host_of(endpoint.url)
    row.status, row.attempts, row.next_attempt_at = "pending", 0, now
    row.finished_at = row.claimed_until = None
    await db.flush()
    await db.execute(text("select pg_notify(:channel, :id)"), {"channel": CHANNEL_DELIVERIES, "id": row.id})
    return row


async def entries(db: AsyncSession, rows: list[WebhookDelivery]) -> list[Entry]:
    """Deliveries with what was tried."""
    tried: dict[str, list[DeliveryAttempt]] = {row.id: [] for row in rows}
    query = select(DeliveryAttempt).where(DeliveryAttempt.delivery_id.in_(tried)).order_by(DeliveryAttempt.created_at)
    for attempt in (await db.execute(query)).scalars():
        tried[attempt.delivery_id].append(attempt)
    held = await breaker.open_until(db, {(row.project_id, row.host) for row in rows if row.status == "pending"})
    return [Entry(row, tried[row.id], held.get((row.project_id, row.host))) for row in rows]
