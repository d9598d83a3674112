"""Many jobs while the database dies again and again, or its connections are cut in the middle of a transaction."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

import migrations
from app.db import Database
from app.embedded.postgres import start_postgres
from app.models import AdapterVersion, Run
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World
from tests.fault.audit import audit
from tests.fault.cable import cabled
from tests.fault.scene import Behave

pytestmark = pytest.mark.fault

TAKEN = "The worker that held this job is gone; another one took it over."


async def jobs(world: World, receiver: Receiver, count: int) -> list[str]:
    """So many jobs of three projects."""
    projects = [await world.project(f"project-{number}") for number in range(3)]
    return [await world.job(projects[n % 3], callback=receiver.url, suffix="fault") for n in range(count)]


async def all_once(world: World, made: list[str], receiver: Receiver) -> None:
    """Every job succeeded by one run, told once, and nobody took a live one."""
    await audit(world, *made, receiver=receiver, seconds=120)
    assert Counter(run.job_id for run in await world.rows(Run)) == dict.fromkeys(made, 1)
    assert len(await world.rows(AdapterVersion)) == len(made)
    for job_id in made:
        told = await world.messages(job_id)
        assert TAKEN not in told
        assert max(Counter(told).values()) == 1


def cuts() -> Callable[[bytes], bool]:
    """Cuts one commit of twenty before its answer, so that nobody knows whether it was made, and one write of eighty."""
    dice = random.Random(7)

    def loses(sent: bytes) -> bool:
        said = sent.upper()
        return dice.random() < (
            1 / 20 if b"COMMIT" in said else 1 / 80 if b"UPDATE " in said or b"INSERT " in said else 0
        )

    return loses


async def under_cuts(world: World, receiver: Receiver, count: int) -> None:
    url = world.settings.database_url.get_secret_value()
    port = urlsplit(url).port
    with cabled(port, cuts()) as cable:
        through = {"database_url": SecretStr(url.replace(f":{port}/", f":{cable.port}/")), "worker_slots": 4}
        made = await jobs(world, receiver, count)
        async with world.working(**through, lease_seconds=15.0), world.working(**through, lease_seconds=15.0):
            await all_once(world, made, receiver)
        assert cable.cuts > count


async def test_connections_cut_in_the_middle_of_transactions_lose_and_double_nothing(
    stored: World, stub_tasks: Behave, quick: None, receiver: Receiver
) -> None:
    await under_cuts(stored, receiver, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_jobs_under_cut_connections(
    stored: World, stub_tasks: Behave, quick: None, receiver: Receiver
) -> None:
    await under_cuts(stored, receiver, 100)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_jobs_outlive_a_database_that_is_killed_again_and_again(
    stored: World, stub_tasks: Behave, quick: None, receiver: Receiver, tmp_path: Path
) -> None:
    state = tmp_path / "postgres"
    servers = [await asyncio.to_thread(start_postgres, state)]
    await asyncio.to_thread(migrations.upgrade, servers[0].url)
    stored.settings = stored.settings.model_copy(update={"database_url": SecretStr(servers[0].url)})
    shared, stored.database = stored.database, Database.from_settings(stored.settings)
    try:
        made = await jobs(stored, receiver, 100)
        async with (
            stored.working(worker_slots=4, lease_seconds=15.0),
            stored.working(worker_slots=4, lease_seconds=15.0),
        ):
            for number in range(8):
                await asyncio.sleep(3)
                await asyncio.to_thread(servers[-1].kill if number % 2 else servers[-1].stop)
                servers.append(await asyncio.to_thread(start_postgres, state, servers[-1].port))
                await stored.database.close()
            await all_once(stored, made, receiver)
    finally:
        await stored.database.close()
        stored.database = shared
        await asyncio.to_thread(servers[-1].stop)
