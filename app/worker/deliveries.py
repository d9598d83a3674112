"""Sends what is owed: claims deliveries that are due, tries them outside any transaction, records each attempt.

A worker that dies between POST and record leaves its claim to run out: the same bytes under the same id are sent again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta

import structlog
from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import is_outage
from app.models import DeliveryAttempt, WebhookDelivery, WebhookEndpoint, new_id
from app.webhooks import breaker, delivery, due
from app.webhooks.delivery import Outcome, Sender
from app.webhooks.due import Due
from app.worker.context import Context
from app.worker.outage import insist

CLAIM_MARGIN_SECONDS = 15.0
LAST_SECONDS = 2.0
GONE = "The receiver answered 410: it wants no more."

log = structlog.get_logger("worker.deliveries")


class Deliveries:
    """Delivers for one worker.

    Attributes:
        wake: Set when there may be something due.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._sender = Sender(context.settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes: Counter[tuple[str, str]] = Counter()
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
            await self._sender.close()

    async def _start_due(self) -> None:
        try:
            while (places := due.AT_ONCE - len(self._tasks)) > 0:
                claimed = await self._claim(places)
                for one in claimed:
                    self._lanes[one.lane] += 1
                    task = asyncio.create_task(self._deliver(one))
                    self._tasks.add(task)
                    task.add_done_callback(self._ended)
                if not claimed:
                    return
        except Exception as problem:
            if not is_outage(problem):
                raise
            log.warning("database_away", error=str(problem).splitlines()[0][:200])

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.wake.set()  # its place may be waited for

    async def _claim(self, places: int) -> list[Due]:
        seconds = self._context.settings.webhook_timeout + CLAIM_MARGIN_SECONDS
        async with self._context.database.transaction() as db:
            return await due.claim(db, places, seconds, +self._lanes)

    async def _deliver(self, one: Due) -> None:
        """Try once, and write it down; a mistake of ours leaves the claim to run out."""
        try:
            await self._try(one)
        except Exception:
            log.exception("stumbled", delivery=one.id)
        finally:
            self._lanes[one.lane] -= 1

    async def _try(self, one: Due) -> None:
        signed = delivery.headers(one.event_id, one.body, one.at, one.secrets)
        outcome = await self._sender.attempt(one.url, one.body, signed)
        delay = await insist(lambda: self._record(one, outcome))
        log.info("attempted", delivery=one.id, status=outcome.status, error=outcome.error, ms=outcome.latency_ms)
        if delay is not None and delay < self._context.settings.poll_seconds:
            asyncio.get_running_loop().call_later(delay, self.wake.set)

    async def _record(self, one: Due, outcome: Outcome) -> float | None:
        """Write the attempt down.

        Returns:
            Seconds to the next one; None if there is none.
        """
        async with self._context.database.transaction() as db:
            row = (
                await db.execute(
                    select(WebhookDelivery)
                    .where(WebhookDelivery.id == one.id, WebhookDelivery.claimed_until == one.claimed_until)
                    .with_for_update()
                )
            ).scalar_one_or_none()
            if row is None:
                return None  # our claim ran out: whoever has it now keeps the record
            row.attempts, row.claimed_until = row.attempts + 1, None
            db.add(_attempt(row, outcome))
            delay = await _settle(db, row, outcome)
            if outcome.host_failed:
                await breaker.failed(db, one.project_id, one.host, probe=one.probe)
            else:
                await breaker.answered(db, one.project_id, one.host)
            return delay


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
    if outcome.ends and row.endpoint_id is not None:
        await _disable(db, row.endpoint_id)
    if outcome.ends or await _unwanted(db, row):
        row.status, row.finished_at = "dead", now
        return None
    await db.flush()
    delay = delivery.next_delay(await _answers(db, row))
    if delay is None:
        row.status, row.finished_at = "dead", now
    else:
        row.next_attempt_at = now + timedelta(seconds=delay)
    return delay


async def _disable(db: AsyncSession, endpoint_id: str) -> None:
    """End an endpoint; what is owed to it and not under way is dead with it."""
    now = func.clock_timestamp()
    gone = update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.disabled_at.is_(None))
    await db.execute(gone.values(disabled_at=now, disabled_reason=GONE))
    owed = update(WebhookDelivery).where(
        WebhookDelivery.endpoint_id == endpoint_id,
        WebhookDelivery.status == "pending",
        or_(WebhookDelivery.claimed_until.is_(None), WebhookDelivery.claimed_until < now),
    )
    await db.execute(owed.values(status="dead", finished_at=now).execution_options(synchronize_session=False))


async def _unwanted(db: AsyncSession, row: WebhookDelivery) -> bool:
    """Whether its endpoint was ended or deleted while it was under way."""
    endpoint = await db.get(WebhookEndpoint, row.endpoint_id) if row.endpoint_id else None
    return endpoint is not None and (endpoint.disabled_at or endpoint.deleted_at) is not None


async def _answers(db: AsyncSession, row: WebhookDelivery) -> list[int | None]:
    """The answers since the delivery was last (re)started, oldest first."""
    newest = (
        select(DeliveryAttempt.response_status)
        .where(DeliveryAttempt.delivery_id == row.id)
        .order_by(DeliveryAttempt.created_at.desc())
        .limit(row.attempts)
    )
    return list(reversed((await db.execute(newest)).scalars().all()))
