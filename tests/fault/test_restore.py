"""A database put back from an older copy of its folder: the doctor finds what it does not know, mends it, and work goes on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

import migrations
from app.db import Database
from app.doctor.finding import Finding, Patient
from app.doctor.visit import examine
from app.embedded.postgres import PostgresServer, start_postgres
from app.files.storage import connect
from app.housekeeping.sweep import sweep
from app.models import AdapterVersion, File, new_id
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from tests.app.doctor.test_doctor import succeed
from tests.app.worker.services import BUCKET, World, until

pytestmark = pytest.mark.fault


class Backup:
    """The world on a Postgres of its own, whose folder can be copied and put back."""

    def __init__(self, world: World, state: Path) -> None:
        self.world, self._state = world, state
        self._data, self._copy = state / "postgres" / "data", state.with_name("copy")
        self._server: PostgresServer | None = None

    async def start(self) -> None:
        self._server = await asyncio.to_thread(start_postgres, self._state)
        url = SecretStr(self._server.url)
        self.world.settings = self.world.settings.model_copy(update={"database_url": url})
        self.world.database = Database.from_settings(self.world.settings)

    async def stop(self) -> None:
        await self.world.database.close()
        assert self._server is not None
        await asyncio.to_thread(self._server.stop)

    async def take(self) -> None:
        await self.stop()
        await asyncio.to_thread(shutil.copytree, self._data, self._copy)
        await self.start()

    async def put_back(self) -> None:
        await self.stop()
        owner = self._data.stat()
        await asyncio.to_thread(shutil.rmtree, self._data)
        await asyncio.to_thread(shutil.copytree, self._copy, self._data)
        for path in (self._data, *self._data.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)
        await self.start()


@pytest_asyncio.fixture
async def backup(stored: World, tmp_path: Path) -> AsyncIterator[Backup]:
    shared, made = stored.database, Backup(stored, tmp_path / "postgres")
    await made.start()
    await asyncio.to_thread(migrations.upgrade, stored.settings.sqlalchemy_url)
    for prefix in ("model/", "files/"):
        for key in await asyncio.to_thread(stored.keys, prefix):
            connect(stored.settings).delete_object(Bucket=BUCKET, Key=key)
    yield made
    await made.stop()
    stored.database = shared


async def doctor(world: World, *, repair: bool) -> list[Finding]:
    return await examine(Patient(world.settings, world.database, repair))


async def test_what_a_restored_database_forgot_is_known_again_after_the_doctor(backup: Backup, tmp_path: Path) -> None:
    world = backup.world
    project = await world.project()
    await succeed(world, await world.job(project, suffix="old"), tmp_path)
    await sweep(world.settings, world.database)
    await backup.take()
    forgotten, upload = await world.job(project, suffix="new"), new_id("file-")
    await succeed(world, forgotten, tmp_path)
    await asyncio.to_thread(world.put, f"files/{project}/{upload}", b"rows")
    await sweep(world.settings, world.database)
    await backup.put_back()

    assert any("older than the objects" in line for line in await sweep(world.settings, world.database))
    found = await doctor(world, repair=False)
    assert {finding.subject for finding in found} == {f"job {forgotten}", f"file {upload}", "database"}
    assert all(finding.repaired for finding in await doctor(world, repair=True))
    assert await doctor(world, repair=True) == []
    assert (await world.get(forgotten)).status == "succeeded"
    assert len(await world.rows(AdapterVersion)) == 2
    assert upload in {file.id for file in await world.rows(File)}
    assert await sweep(world.settings, world.database) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_runs_that_a_restored_database_does_not_know_are_ended_and_new_jobs_run(
    backup: Backup, stub_tasks: Callable[..., None]
) -> None:
    world = backup.world
    stub_tasks(seconds="1")
    project = await world.project()
    waiting = await world.job(project, suffix="waiting")
    async with world.working(worker_slots=0):
        await until(lambda: is_in(world, waiting, "queued"), 30)
    await sweep(world.settings, world.database)
    await backup.take()
    async with world.working():
        await until(lambda: world.is_over(waiting), 240)
        done = await world.job(project, suffix="done")
        await until(lambda: world.is_over(done), 240)
        stub_tasks(seconds="120")
        running = await world.job(project, suffix="running")
        await until(lambda: is_training(world, running), 240)
    await sweep(world.settings, world.database)
    await backup.put_back()
    shutil.rmtree(folder.of(world.settings, waiting).root)  # as if its machine had been lost with the database
    assert process.members(label(running)), "the run goes on: its worker let it go"

    found = {finding.subject: finding.problem for finding in await doctor(world, repair=False)}
    assert "is not known to the database" in found[f"job {running}"]
    assert "does not know it" in found[f"job {done}"]
    assert "it is queued, and its whole result is at" in found[f"job {waiting}"]
    assert all(finding.repaired for finding in await doctor(world, repair=True))
    assert [finding for finding in await doctor(world, repair=True) if "no whole result" not in finding.problem] == []
    assert process.members(label(running)) == []
    assert {(await world.get(job_id)).status for job_id in (waiting, done)} == {"succeeded"}
    stub_tasks(seconds="1")
    fresh = await world.job(project, suffix="fresh")
    async with world.working():
        job = await until(lambda: world.is_over(fresh), 240)
    assert (job.status, job.error) == ("succeeded", None)
    assert len(await world.rows(AdapterVersion)) == 3


async def is_in(world: World, job_id: str, status: str) -> bool:
    return (await world.get(job_id)).status == status


async def is_training(world: World, job_id: str) -> bool:
    return bool(((await world.get(job_id)).progress or {}).get("step"))
