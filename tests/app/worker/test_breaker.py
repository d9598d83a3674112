"""A host that fails is left alone for a while, one goes first to find out, and nobody else waits for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text

from app.models import DeliveryAttempt, WebhookDelivery, WebhookHost, new_id
from app.webhooks import breaker, due
from tests.app.worker.receiver import receiving
from tests.app.worker.services import World, until
from tests.app.worker.test_deliveries import delivering

pytestmark = pytest.mark.db


async def owe(world: World, project: str, url: str, times: int = 1) -> None:
    """Deliveries of no job, due now."""
    host = url.split("/")[2]
    async with world.database.transaction() as db:
        for _ in range(times):
            row = WebhookDelivery(id=new_id("whd_"), project_id=project, event_id=new_id("evt_"), type="test", url=url)
            row.host, row.body = host, b"{}"
            db.add(row)


async def execute(world: World, statement: str) -> None:
    async with world.database.transaction() as db:
        await db.execute(text(statement))


async def claim(world: World, places: int = due.AT_ONCE, busy: Counter[Any] | None = None) -> list[due.Due]:
    async with world.database.transaction() as db:
        return await due.claim(db, places, 30.0, busy or Counter())


async def fail(world: World, project: str, host: str, times: int = 1, *, probe: bool = False) -> float | None:
    """Failures of a host; for how many seconds its breaker is open then."""
    async with world.database.transaction() as db:
        for _ in range(times):
            await breaker.failed(db, project, host, probe=probe)
        left = "select extract(epoch from open_until - clock_timestamp()) from webhook_hosts where host = :host"
        found = (await db.execute(text(left), {"host": host})).scalar_one()
        return None if found is None else float(found)


async def test_it_opens_after_ten_failures_in_a_row_and_for_longer_each_time(world: World) -> None:
    project = await world.project()
    assert await fail(world, project, "h:1", breaker.FAILURES - 1) is None
    spans = [await fail(world, project, "h:1", probe=tries > 0) for tries in range(7)]
    assert [round(span or 0, -1) for span in spans] == [30, 60, 120, 240, 480, 600, 600]
    assert await fail(world, project, "h:1", 20) == pytest.approx(600, abs=60), "those under way open it no longer"


async def test_a_success_closes_it_and_old_failures_are_forgotten(world: World) -> None:
    project = await world.project()
    await fail(world, project, "h:1", breaker.FAILURES)
    async with world.database.transaction() as db:
        await breaker.answered(db, project, "h:1")
    assert await fail(world, project, "h:1", breaker.FAILURES - 1) is None
    await fail(world, project, "h:1")
    await execute(world, "update webhook_hosts set updated_at = clock_timestamp() - interval '2 hours'")
    assert await fail(world, project, "h:1", probe=True) is None


async def test_what_waits_for_it_loses_no_attempt_and_goes_when_one_got_through(world: World) -> None:
    project = await world.project()
    with receiving(200) as receiver:
        await fail(world, project, f"127.0.0.1:{receiver.port}", breaker.FAILURES)
        await owe(world, project, receiver.url, 5)
        async with delivering(world, receiver):
            await asyncio.sleep(0.6)
            assert receiver.received == []
            await execute(world, "update webhook_hosts set open_until = clock_timestamp()")
            await until(lambda: all_delivered(world))
    rows = await world.rows(WebhookDelivery)
    assert [row.attempts for row in rows] == [1] * 5
    [host] = await hosts(world)
    assert (host.failures, host.open_until) == (0, None)


async def test_past_its_time_one_alone_is_claimed_as_the_probe(world: World) -> None:
    project = await world.project()
    await fail(world, project, "h:80", breaker.FAILURES)
    await owe(world, project, "http://h:80/", 5)
    await execute(world, "update webhook_hosts set open_until = clock_timestamp()")
    assert [one.probe for one in await claim(world)] == [True]
    assert await claim(world) == []


async def test_workers_at_once_send_one_probe(world: World) -> None:
    project = await world.project()
    await fail(world, project, "h:80", breaker.FAILURES)
    await owe(world, project, "http://h:80/", 5)
    await execute(world, "update webhook_hosts set open_until = clock_timestamp()")
    claimed = await asyncio.gather(*(claim(world) for _ in range(6)))
    assert sum(map(len, claimed)) == 1


async def test_a_backlog_leaves_places_to_other_hosts_and_other_projects(world: World) -> None:
    greedy, modest = await world.project("greedy"), await world.project("modest")
    for host in range(6):
        await owe(world, greedy, f"http://dead-{host}:80/", 20)
    await owe(world, modest, "http://well:80/")
    claimed = await claim(world)
    lanes = Counter(one.lane for one in claimed)
    assert lanes[(modest, "well:80")] == 1
    assert max(lanes.values()) <= due.A_HOST
    assert sum(places for (project, _), places in lanes.items() if project == greedy) == due.A_PROJECT
    assert await claim(world, busy=lanes) == [], "what hangs keeps its places, and no more than those"


async def test_another_project_does_not_wait_for_somebodys_breaker(world: World) -> None:
    one, other = await world.project("one"), await world.project("other")
    await fail(world, one, "h:80", breaker.FAILURES)
    for project in (one, other):
        await owe(world, project, "http://h:80/")
    assert [found.project_id for found in await claim(world)] == [other]


@pytest.mark.slow
async def test_a_dead_receiver_holds_up_no_other_delivery(world: World) -> None:
    dead, well = await world.project("dead"), await world.project("well")
    with receiving("hang") as black_hole, receiving(200) as receiver:
        await owe(world, dead, black_hole.url, 40)
        async with delivering(world, receiver, black_hole):
            await until(lambda: tried(world, 8), 60)
            await owe(world, well, receiver.url, 10)
            await until(lambda: delivered(world, 10), 10)
            await until(lambda: hosts_open(world), 60)
    waiting = [row for row in await world.rows(WebhookDelivery) if row.project_id == dead and row.attempts == 0]
    assert waiting, "the breaker opened before each was tried"


async def delivered(world: World, number: int) -> bool:
    return len([row for row in await world.rows(WebhookDelivery) if row.status == "delivered"]) >= number


async def all_delivered(world: World) -> bool:
    return all(row.status == "delivered" for row in await world.rows(WebhookDelivery))


async def tried(world: World, number: int) -> bool:
    return len(await world.rows(DeliveryAttempt)) >= number


async def hosts(world: World) -> list[WebhookHost]:
    async with world.database.transaction() as db:
        return list((await db.execute(text("select * from webhook_hosts"))).all())  # type: ignore[arg-type]


async def hosts_open(world: World) -> bool:
    return any(host.open_until is not None for host in await hosts(world))
