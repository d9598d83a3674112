"""Sends what is owed: claims deliveries that are due, tries them outside any transaction, records each attempt.

A worker that dies between POST and record leaves its claim to run out: the same bytes under the same id are sent again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import is_outage
from app.models import DeliveryAttempt, SigningSecret, WebhookDelivery, WebhookEndpoint, new_id
from app.webhooks import delivery
from app.webhooks.delivery import Outcome
from app.worker.context import Context
from app.worker.outage import insist

AT_ONCE = 32
"""Attempts under way at a time: a receiver that hangs must not hold up the others."""

CLAIM_MARGIN_SECONDS = 15.0
LAST_SECONDS = 2.0

_CLAIM = text("""
with due as (
    select id from webhook_deliveries
    where status = 'pending' and next_attempt_at <= clock_timestamp()
      and (claimed_until is null or claimed_until < clock_timestamp())
    order by next_attempt_at, created_at limit :places for update skip locked
)
update webhook_deliveries d set claimed_until = clock_timestamp() + make_interval(secs => :seconds)
from due where d.id = due.id
returning d.id, d.claimed_until, clock_timestamp()
""")

log = structlog.get_logger("worker.deliveries")


@dataclass(frozen=True)
class Due:
    """A claimed delivery. claimed_until is also its fence: a later claim has another one."""

    id: str
    claimed_until: datetime
    at: datetime
    url: str
    event_id: str
    body: bytes
    secrets: list[str]


class Deliveries:
    """Delivers for one worker.

    Attributes:
        wake: Set when there may be something due.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self.wake = asyncio.Event()

    async def deliver_for_ever(self) -> None:
        """Deliver what is due, then wait for a NOTIFY or the poll. Cancelled, it gives attempts under way a moment to end."""
        try:
            while True:
                self.wake.clear()
                await self._start_due()
                try:
                    async with asyncio.timeout(self._context.settings.poll_seconds):
                        await self.wake.wait()
                except TimeoutError:
                    continue
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_due(self) -> None:
        try:
            while (places := AT_ONCE - len(self._tasks)) > 0:
                due = await self._claim(places)
                for one in due:
                    task = asyncio.create_task(self._deliver(one))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                if len(due) < places:
                    return
        except Exception as problem:
            if not is_outage(problem):
                raise
            log.warning("database_away", error=str(problem).splitlines()[0][:200])

    async def _claim(self, places: int) -> list[Due]:
        seconds = self._context.settings.webhook_timeout + CLAIM_MARGIN_SECONDS
        async with self._context.database.transaction() as db:
            rows = (await db.execute(_CLAIM, {"places": places, "seconds": seconds})).all()
            return [await _load(db, *row) for row in rows]

    async def _deliver(self, due: Due) -> None:
        """Try once, and write it down; a mistake of ours leaves the claim to run out."""
        try:
            await self._try(due)
        except Exception:
            log.exception("stumbled", delivery=due.id)

    async def _try(self, due: Due) -> None:
        settings = self._context.settings
        signed = delivery.headers(due.event_id, due.body, due.at, due.secrets)
        outcome = await delivery.attempt(
            due.url, due.body, signed, allow=settings.webhook_allow, seconds=settings.webhook_timeout
        )
        delay = await insist(lambda: self._record(due, outcome))
        log.info("attempted", delivery=due.id, status=outcome.status, error=outcome.error, ms=outcome.latency_ms)
        if delay is not None and delay < self._context.settings.poll_seconds:
            asyncio.get_running_loop().call_later(delay, self.wake.set)

    async def _record(self, due: Due, outcome: Outcome) -> float | None:
        """Write the attempt down.

        Returns:
            Seconds to the next one; None if there is none.
        """
        async with self._context.database.transaction() as db:
            row = (
                await db.execute(
                    select(WebhookDelivery)
                    .where(WebhookDelivery.id == due.id, WebhookDelivery.claimed_until == due.claimed_until)
                    .with_for_update()
                )
            ).scalar_one_or_none()
            if row is None:
                return None  # our claim ran out: whoever has it now keeps the record
            row.attempts, row.claimed_until = row.attempts + 1, None
            db.add(_attempt(row, outcome))
            return await _settle(db, row, outcome)


def _attempt(row: WebhookDelivery, outcome: Outcome) -> DeliveryAttempt:
    return DeliveryAttempt(
        id=new_id("wha_"), delivery_id=row.id, attempt=row.attempts,
        response_status=outcome.status, error=outcome.error, latency_ms=outcome.latency_ms, response_head=outcome.head,
    )  # fmt: skip


async def _settle(db: AsyncSession, row: WebhookDelivery, outcome: Outcome) -> float | None:
    """The delivery's status after an attempt, and seconds to the next."""
    now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    if outcome.delivered:
        row.status, row.finished_at = "delivered", now
        return None
    if outcome.ends:
        row.status, row.finished_at = "dead", now
        if row.endpoint_id is not None:
            gone = update(WebhookEndpoint).where(WebhookEndpoint.id == row.endpoint_id)
            await db.execute(gone.values(disabled_at=now))
        return None
    await db.flush()
    delay = delivery.next_delay(await _answers(db, row))
    if delay is None:
        row.status, row.finished_at = "dead", now
    else:
        row.next_attempt_at = now + timedelta(seconds=delay)
    return delay


async def _answers(db: AsyncSession, row: WebhookDelivery) -> list[int | None]:
    """The answers since the delivery was last (re)started, oldest first."""
    newest = (
        select(DeliveryAttempt.response_status)
        .where(DeliveryAttempt.delivery_id == row.id)
        .order_by(DeliveryAttempt.created_at.desc())
        .limit(row.attempts)
    )
    return list(reversed((await db.execute(newest)).scalars().all()))


async def _load(db: AsyncSession, id: str, claimed_until: datetime, at: datetime) -> Due:
    row = await db.get_one(WebhookDelivery, id)
    valid = select(SigningSecret.secret).where(
        SigningSecret.project_id == row.project_id,
        SigningSecret.endpoint_id.is_not_distinct_from(row.endpoint_id),
        or_(SigningSecret.expires_at.is_(None), SigningSecret.expires_at > func.clock_timestamp()),
    )
    secrets = list((await db.execute(valid.order_by(SigningSecret.created_at.desc()))).scalars())
    return Due(row.id, claimed_until, at, row.url, row.event_id, row.body, secrets)
