"""A worker's heartbeat waits for the database alone: a full disk costs neither the worker nor its leases."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest
from sqlalchemy import select

from app.models import Worker
from tests.app.worker.services import World, until

pytestmark = pytest.mark.db


async def seen(world: World) -> datetime:
    """The last heartbeat of the only worker."""
    async with world.database.transaction() as db:
        row = (await db.execute(select(Worker))).scalar_one()
        return row.heartbeat_at


async def test_a_worker_that_can_write_nothing_says_that_it_lives_and_why_a_job_cannot_run(stored: World) -> None:
    head = stored.settings.state_dir / "head"
    head.write_text("#!/bin/sh\nexit 0\n")
    head.chmod(0o755)
    job_id = await stored.job(await stored.project())
    worker = stored.worker_process(within=("prlimit", "--fsize=0"), nextflow=head)
    try:
        job = await until(lambda: stored.is_over(job_id), 180)
        assert job.error["code"] in ("disk_full", "internal_error")
        assert "could not be started" in job.error["message"]
        before = await seen(stored)

        async def again() -> bool:
            return await seen(stored) > before

        await until(again, 60)
        assert worker.poll() is None
    finally:
        worker.terminate()
        await asyncio.to_thread(worker.wait, 30)
