"""A paused job to be cancelled whose request did not come to its end: a sweep brings it there, with nothing left on S3."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from app.housekeeping.sweep import sweep
from app.models import AdapterVersion
from tests.app.worker.services import World

pytestmark = pytest.mark.db


async def half_cancelled(world: World, seconds: int) -> str:
    """A paused job whose cancel was accepted so long ago."""
    job_id = await world.job(await world.project())
    async with world.database.transaction() as db:
        change = (
            "update jobs set status = 'paused', paused_at = clock_timestamp(), "
            "cancel_requested_at = clock_timestamp() - make_interval(secs => :seconds) where id = :id"
        )
        await db.execute(text(change), {"seconds": seconds, "id": job_id})
    world.put(f"model/{job_id}/adapter/half", b"x")
    return job_id


async def test_what_the_request_did_not_finish_a_sweep_does(stored: World) -> None:
    job_id = await half_cancelled(stored, 90)
    said = await sweep(stored.settings, stored.database)
    assert f"Cancelled {job_id}, as it was asked to be." in said
    assert ((await stored.get(job_id)).status, stored.keys(f"model/{job_id}/")) == ("cancelled", [])
    assert (await stored.messages(job_id))[-1] == "Fine-tuning job cancelled"
    assert await stored.rows(AdapterVersion) == []


async def test_an_object_that_came_after_the_cancel_is_removed(stored: World) -> None:
    job_id = await half_cancelled(stored, 90)
    await sweep(stored.settings, stored.database)
    async with stored.database.transaction() as db:
        await db.execute(text("update jobs set started_at = created_at where id = :id"), {"id": job_id})
    stored.put(f"model/{job_id}/adapter/late", b"x")
    said = await sweep(stored.settings, stored.database)
    assert f"Removed 1 object that came after {job_id} was cancelled." in said
    assert stored.keys(f"model/{job_id}/") == []


async def test_a_request_that_may_still_be_at_it_is_left_alone(stored: World) -> None:
    job_id = await half_cancelled(stored, 5)
    await sweep(stored.settings, stored.database)
    assert (await stored.get(job_id)).status == "paused"


async def test_while_s3_is_away_it_stays_as_it_is(stored: World) -> None:
    job_id = await half_cancelled(stored, 90)
    away = stored.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    said = await sweep(away, stored.database)
    assert [line for line in said if line.startswith("cancels: not done now")] != []
    assert (await stored.get(job_id)).status == "paused"
