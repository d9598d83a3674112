"""Receivers that refuse, hang, lie and flood, and workers killed around the POST: each event arrives, under one id, with the same bytes."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text

from app.jobs import lifecycle
from app.models import DeliveryAttempt, WebhookDelivery
from tests.app.worker.receiver import Receiver, receiving
from tests.app.worker.services import World, kill, until
from tests.app.worker.test_deliveries import delivering
from tests.fault.scene import Workers

pytestmark = pytest.mark.fault

BEHAVIOURS: dict[str, tuple[Any, ...]] = {
    "hangs, then takes it": ("hang", 200),
    "closes, then takes it": ("close", "close", 200),
    "answers 500 twice, then takes it": (500, 503, 200),
    "is not there yet, as a resume URL of n8n": (404, 409, 200),
    "sends a gigabyte": ("flood",),
    "closes in the middle of its answer": ((200, {"content-length": "1000"}, b"half"), 200),
}


async def owe(world: World, project: str, url: str) -> str:
    """A job that ended and has a callback to make; its delivery."""
    job_id = await world.job(project, callback=url)
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        await lifecycle.failed(db, job, {"code": "c", "message": "m", "param": None}, fence=None)
    return next(row.id for row in await world.rows(WebhookDelivery) if row.job_id == job_id)


async def of(world: World, delivery_id: str) -> Any:
    return next(row for row in await world.rows(WebhookDelivery) if row.id == delivery_id)


async def is_delivered(world: World, *owed: str) -> bool:
    rows = {row.id: row.status for row in await world.rows(WebhookDelivery)}
    return all(rows[one] == "delivered" for one in owed)


async def test_a_worker_killed_between_post_and_record_sends_the_same_again(stored: World, workers: Workers) -> None:
    with receiving("hang", 200) as receiver:
        stored.settings = stored.settings.model_copy(update={"webhook_allow": receiver.allow})
        delivery_id = await owe(stored, await stored.project(), receiver.url)
        worker = workers()
        await until(lambda: came(receiver, 1), 60)
        kill(worker.pid)
        assert (await of(stored, delivery_id)).status == "pending"
        async with stored.database.transaction() as db:  # the claim's time passes
            await db.execute(text("update webhook_deliveries set claimed_until = clock_timestamp()"))
        async with delivering(stored, receiver):
            await until(lambda: is_delivered(stored, delivery_id), 60)
    row = await of(stored, delivery_id)
    assert [(got.headers["webhook-id"], got.body) for got in receiver.received] == [(row.event_id, row.body)] * 2
    assert row.attempts == 1, "the attempt that was not recorded is not counted"


async def came(receiver: Receiver, times: int) -> bool:
    return len(receiver.received) >= times


@pytest.mark.slow
@pytest.mark.parametrize("answers", BEHAVIOURS.values(), ids=BEHAVIOURS)
async def test_what_passes_is_delivered_in_the_end(world: World, answers: tuple[Any, ...]) -> None:
    with receiving(*answers) as receiver:
        delivery_id = await owe(world, await world.project(), receiver.url)
        async with delivering(world, receiver):
            await until(lambda: is_delivered(world, delivery_id), 60)
    row = await of(world, delivery_id)
    assert {(got.headers["webhook-id"], got.body) for got in receiver.received} == {(row.event_id, row.body)}
    tried = await world.rows(DeliveryAttempt)
    assert len(tried) == len(receiver.received) == row.attempts
    assert all(len(one.response_head or "") <= 1024 for one in tried)


@pytest.mark.slow
async def test_a_receiver_that_starts_late_gets_it_by_the_quick_tries(world: World) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    late = Receiver(port=port)
    delivery_id = await owe(world, await world.project(), late.url)
    async with delivering(world, late):
        await until(lambda: refused(world, 3))
        with receiving(port=port) as receiver:
            await until(lambda: is_delivered(world, delivery_id), 60)
    assert len(receiver.received) == 1


async def refused(world: World, times: int) -> bool:
    return len([one for one in await world.rows(DeliveryAttempt) if one.response_status is None]) >= times


@pytest.mark.slow
async def test_of_many_events_and_workers_that_die_none_is_lost(stored: World, workers: Workers) -> None:
    with receiving() as receiver:
        stored.settings = stored.settings.model_copy(update={"webhook_allow": receiver.allow})
        project = await stored.project()
        started = [workers() for _ in range(2)]
        owed = [await owe(stored, project, receiver.url) for _ in range(40)]
        await until(lambda: came(receiver, 10), 120)
        for worker in started:
            kill(worker.pid)
        async with stored.database.transaction() as db:
            await db.execute(text("update webhook_deliveries set claimed_until = null where status = 'pending'"))
        workers()
        await until(lambda: is_delivered(stored, *owed), 120)
    rows = {row.event_id: row.body for row in await stored.rows(WebhookDelivery)}
    arrived = Counter(got.headers["webhook-id"] for got in receiver.received)
    assert set(arrived) == set(rows)
    assert all(got.body == rows[got.headers["webhook-id"]] for got in receiver.received)
