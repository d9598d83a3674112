"""What a step reported becomes an event; one with warnings is told as a warning."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from app.jobs import lifecycle
from app.models import Event, Run
from app.nextflow.progress import Ended, Row
from app.worker import record
from tests.app.jobs.factory import move
from tests.app.worker.services import World

pytestmark = pytest.mark.db


def ended(**data: int) -> Ended:
    """A preparation that ended well."""
    row = Row("88/ffcdb3", "PREPARE_DATA", "COMPLETED", 0, 1, None, None, None, None, "", None)
    return Ended(row, {"message": "Prepared 12 examples", "data": data})


async def test_a_preparation_that_cut_left_out_or_leaks_rows_is_told_as_a_warning(world: World) -> None:
    job_id = await world.job(await world.project(), suffix="told")
    await move(world.database, job_id, "running")
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        run = (await db.execute(select(Run).where(Run.job_id == job_id))).scalar_one()
        await record._ended(db, job, run, ended(warnings=2))
        await record._ended(db, job, run, ended(warnings=0))
        await record._ended(db, job, run, ended())
    told = [event for event in await world.rows(Event) if event.message == "Prepared 12 examples"]
    assert [event.level for event in sorted(told, key=lambda event: event.seq)] == ["warn", "info", "info"]
