"""Postgres killed -9 and restarted while a training runs: nothing is lost, nobody steals the run, nothing is told twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

import migrations
from app.db import Database
from app.embedded.postgres import PostgresServer, start_postgres
from app.models import Run
from tests.app.worker.services import World, until
from tests.fault.audit import audit
from tests.fault.scene import steps

pytestmark = pytest.mark.fault


@pytest_asyncio.fixture
async def fragile(stored: World, tmp_path: Path) -> AsyncIterator[tuple[World, list[PostgresServer]]]:
    """The world on a Postgres of its own, which a test may kill and start again."""
    state = tmp_path / "postgres"
    servers = [await asyncio.to_thread(start_postgres, state)]
    await asyncio.to_thread(migrations.upgrade, servers[0].url)
    stored.settings = stored.settings.model_copy(update={"database_url": SecretStr(servers[0].url)})
    shared, stored.database = stored.database, Database.from_settings(stored.settings)
    yield stored, servers
    await stored.database.close()
    stored.database = shared
    await asyncio.to_thread(servers[-1].stop)


async def test_a_job_outlives_the_death_of_its_database(
    fragile: tuple[World, list[PostgresServer]], stub_tasks: Callable[..., None], tmp_path: Path
) -> None:
    world, servers = fragile
    stub_tasks(seconds="6")
    job_id = await world.job(await world.project())

    async def training() -> bool:
        return bool(((await world.get(job_id)).progress or {}).get("step"))

    async with world.working(), world.working():
        await until(training, 180)
        fence = (await world.get(job_id)).fence
        for _ in range(2):
            await asyncio.to_thread(servers[-1].kill)
            servers.append(await asyncio.to_thread(start_postgres, tmp_path / "postgres"))
            await world.database.close()
        job = (await audit(world, job_id))[job_id]
    assert (job.fence, len(await world.rows(Run))) == (fence, 1)
    assert steps(world, job_id) == dict.fromkeys(range(1, 11), 1)
    assert max(Counter(await world.messages(job_id)).values()) == 1
