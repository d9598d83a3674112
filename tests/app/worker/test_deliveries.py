"""What is owed is sent by a worker: again until it is taken, once it is recorded never again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from app.adapters.service import register_version
from app.jobs import lifecycle
from app.models import Checkpoint, DeliveryAttempt, SigningSecret, WebhookDelivery, WebhookEndpoint, new_id
from app.worker import presence, record
from app.worker.context import Context
from app.worker.deliveries import Deliveries
from app.worker.training import Note, Story
from tests.app.worker.receiver import Receiver, receiving
from tests.app.worker.services import SECRET, World, until

pytestmark = pytest.mark.db


@asynccontextmanager
async def delivering(world: World, *receivers: Receiver, workers: int = 1) -> AsyncIterator[None]:
    allowed = [entry for receiver in receivers for entry in receiver.allow]
    settings = world.settings.model_copy(update={"webhook_allow": allowed, "webhook_timeout": 1.0})
    context = Context(settings, world.database, presence.myself(settings))
    loops = [asyncio.create_task(Deliveries(context).deliver_for_ever()) for _ in range(workers)]
    yield
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)


async def owe(world: World, receiver: Receiver) -> str:
    """A job that failed and has a callback to make."""
    job_id = await world.job(await world.project(), callback=receiver.url)
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        await lifecycle.failed(db, job, {"code": "c", "message": "m", "param": None}, fence=None)
    return job_id


async def only(world: World) -> Any:
    (row,) = await world.rows(WebhookDelivery)
    return row


async def is_settled(world: World) -> Any:
    row = await only(world)
    return row if row.status != "pending" else None


async def test_it_is_sent_again_with_the_same_id_and_bytes_until_it_is_taken(world: World) -> None:
    with receiving(500, 404, 200) as receiver:
        async with delivering(world, receiver):
            await owe(world, receiver)
            row = await until(lambda: is_settled(world))
    assert (row.status, row.attempts) == ("delivered", 3)
    assert {(got.headers["webhook-id"], got.body) for got in receiver.received} == {(row.event_id, row.body)}
    tries = [(one.attempt, one.response_status, one.response_head) for one in await world.rows(DeliveryAttempt)]
    assert tries == [(1, 500, "ok"), (2, 404, "ok"), (3, 200, "ok")]


async def test_many_workers_send_it_once(world: World) -> None:
    with receiving() as receiver:
        async with delivering(world, receiver, workers=4):
            await owe(world, receiver)
            await until(lambda: is_settled(world))
    assert len(receiver.received) == 1


async def test_a_410_ends_it_and_its_endpoint(world: World) -> None:
    with receiving(410) as receiver:
        project = await world.project()
        async with world.database.transaction() as db:
            endpoint = WebhookEndpoint(id=new_id("whep_"), project_id=project, name="e", url=receiver.url)
            endpoint.event_types = ["fine_tuning.job.cancelled"]
            db.add(endpoint)
            await db.flush()
            db.add(SigningSecret(id=new_id("whs_"), project_id=project, endpoint_id=endpoint.id, secret=SECRET))
        job_id = await world.job(project)
        async with delivering(world, receiver):
            async with world.database.transaction() as db:
                await lifecycle.cancelled(db, await lifecycle.lock(db, job_id), fence=None)
            row = await until(lambda: is_settled(world))
    assert (row.status, row.attempts) == ("dead", 1)
    [ended] = await world.rows(WebhookEndpoint)
    assert ended.disabled_at is not None
    assert "410" in ended.disabled_reason


async def test_a_wrong_answer_waits_for_the_slow_schedule(world: World) -> None:
    async def tried() -> Any:
        return await world.rows(DeliveryAttempt)

    with receiving(302) as receiver:
        async with delivering(world, receiver):
            await owe(world, receiver)
            await until(tried)
    row = await only(world)
    assert row.status == "pending"
    assert timedelta(seconds=4) < row.next_attempt_at - (await tried())[0].created_at < timedelta(seconds=6)
    assert "redirects are not followed" in (await tried())[0].error


async def test_it_is_dead_after_the_last_try_and_alive_when_asked_for_again(world: World) -> None:
    with receiving(400) as receiver:
        await owe(world, receiver)
        async with delivering(world, receiver):
            for attempt in range(1, 8):
                await until(lambda: attempted(world, attempt))  # noqa: B023  awaited at once
                async with world.database.transaction() as db:
                    await db.execute(text("update webhook_deliveries set next_attempt_at = clock_timestamp()"))
            assert (await only(world)).status == "dead"


async def attempted(world: World, times: int) -> bool:
    return len(await world.rows(DeliveryAttempt)) >= times


async def test_a_worker_that_died_after_the_post_leaves_it_to_be_sent_again(world: World) -> None:
    with receiving() as receiver:
        await owe(world, receiver)
        async with world.database.transaction() as db:
            claimed = "update webhook_deliveries set claimed_until = clock_timestamp() + interval '400 ms'"
            await db.execute(text(claimed))
        async with delivering(world, receiver):
            row = await until(lambda: is_settled(world))
    assert (row.status, row.attempts, len(receiver.received)) == ("delivered", 1, 1)


async def test_a_callback_that_names_them_is_told_of_checkpoints_and_of_the_promotion(world: World) -> None:
    job_id = await world.job(await world.project(), callback="http://127.0.0.1:9/", suffix="told")
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        job.callback_events = ["fine_tuning.job.checkpoint", "adapter.promoted"]
        for _ in range(2):  # after a resume a step may be reached a second time
            await record._train(db, job, Story([Note("checkpoint", "saved", {"step": 5})], None, {}))
        await register_version(db, job, {"id": "tiny"}, "s3://x/", "0" * 64, {})
    (saved,) = await world.rows(Checkpoint)
    *points, promoted = [json.loads(row.body) for row in await world.rows(WebhookDelivery)]
    told = {"id": saved.id, "step_number": 5, "metrics": {"step": 5}}
    assert [body["data"]["checkpoint"] for body in points] == [told, told]
    assert (promoted["type"], promoted["data"]["adapter"]["version"]) == ("adapter.promoted", 1)
