"""What is asked of a job while its run goes on, and what becomes of it when the run has stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.models import AdapterVersion, Job, Run, Stage, new_id
from app.nextflow import process
from app.nextflow.progress import Cursor
from app.worker import claim, folder, settle, wishes
from app.worker.context import Context, Hand
from app.worker.launch import label
from app.worker.run import carry, obey
from app.worker.validate import validate
from app.worker.wishes import Wishes
from tests.app.worker.services import World
from tests.app.worker.test_settle import finished, succeed

pytestmark = pytest.mark.db

START = datetime(2026, 1, 1, tzinfo=UTC)


async def ask(world: World, job_id: str, **columns: object) -> None:
    """Write intents as the API does."""
    async with world.database.transaction() as db:
        job = await db.get_one(Job, job_id)
        for name, value in columns.items():
            setattr(job, name, value)


async def trained(world: World, run: Run, *spans: tuple[str, int, int | None]) -> None:
    """Tasks of FINE_TUNE: status, and seconds from START to their start and to their end."""
    async with world.database.transaction() as db:
        for number, (status, start, end) in enumerate(spans):
            db.add(
                Stage(
                    id=new_id("stage_"), project_id=run.project_id, job_id=run.job_id, run_id=run.id, process="FINE_TUNE",
                    task_hash=f"ff/{number}", attempt=1, status=status, started_at=START + timedelta(seconds=start),
                    submitted_at=START, finished_at=None if end is None else START + timedelta(seconds=end),
                )
            )  # fmt: skip


async def limited(world: World, seconds: int) -> tuple[Context, Hand, Run]:
    """A running job whose training may run so long."""
    context, hand, run = await finished(world)
    job = await world.get(hand.job_id)
    await ask(world, job.id, spec=job.spec | {"execution": job.spec["execution"] | {"max_runtime_seconds": seconds}})
    return context, hand, run


async def test_a_job_of_which_nothing_is_asked_goes_on(stored: World) -> None:
    context, hand, run = await finished(stored)
    assert await wishes.of(context, hand, run) == Wishes()


async def test_a_pause_leaves_the_training_time_to_save(stored: World) -> None:
    context, hand, run = await finished(stored)
    asked = datetime.now(UTC) - timedelta(seconds=30)
    await ask(stored, hand.job_id, pause_requested_at=asked)
    assert await wishes.of(context, hand, run) == Wishes(pause=True)
    short = Context(context.settings.model_copy(update={"pause_timeout": 20.0}), context.database, context.me)
    assert await wishes.of(short, hand, run) == Wishes(pause=True, late=True)


async def test_only_the_running_of_the_training_counts_for_its_limit(stored: World) -> None:
    context, hand, run = await limited(stored, 25)
    await trained(stored, run, ("failed", 100, 110), ("aborted", 1000, 1012), ("cached", 0, 500))
    async with stored.database.transaction() as db:
        assert await wishes.trained_seconds(db, hand.job_id) == 22
    assert await wishes.of(context, hand, run) == Wishes()
    await trained_more(stored, run, 4)
    assert await wishes.of(context, hand, run) == Wishes(overtime=True)
    run.cursor = Cursor(folders={"FINE_TUNE": "work"}).as_json()
    assert await wishes.of(context, hand, run) == Wishes()


async def trained_more(world: World, run: Run, seconds: int) -> None:
    """A task that has been running for so long."""
    async with world.database.transaction() as db:
        begun = datetime.now(UTC) - timedelta(seconds=seconds)
        db.add(
            Stage(
                id=new_id("stage_"), project_id=run.project_id, job_id=run.job_id, run_id=run.id, process="FINE_TUNE",
                task_hash="ff/now", attempt=1, status="running", started_at=begun,
            )
        )  # fmt: skip


async def test_the_hours_that_a_machine_was_off_are_none_of_the_trainings(stored: World, tmp_path: Path) -> None:
    context, hand, run = await limited(stored, 25)
    work = tmp_path / "work"
    work.mkdir()
    (work / ".command.out").touch()
    await trained_more(stored, run, 3600)
    async with stored.database.transaction() as db:
        stage = next(row for row in await stored.rows(Stage) if row.process == "FINE_TUNE")
        (await db.get_one(Stage, stage.id)).workdir = str(work)
    last = stage.started_at.timestamp() + 20
    os.utime(work / ".command.out", (last, last))
    await settle.close_run(context, hand, run, None, None)
    async with stored.database.transaction() as db:
        assert await wishes.trained_seconds(db, hand.job_id) == pytest.approx(20, abs=0.1)


async def test_a_job_whose_run_has_stopped_for_a_pause_is_paused(stored: World) -> None:
    context, hand, run = await finished(stored)
    home = folder.of(stored.settings, hand.job_id)
    home.root.mkdir(parents=True)
    folder.write_credentials(home, stored.settings)
    await ask(stored, hand.job_id, pause_requested_at=START)
    for _ in range(2):
        await settle.pause(context, hand, run)
    job = await stored.get(hand.job_id)
    assert (job.status, job.worker_id, [row.status for row in await stored.rows(Stage)]) == (
        "paused",
        None,
        ["aborted"],
    )
    assert (await stored.messages(hand.job_id)).count("Fine-tuning job paused") == 1
    assert not (home.root / "credentials").exists()


async def test_a_pause_that_was_withdrawn_meanwhile_only_closes_the_run(stored: World) -> None:
    context, hand, run = await finished(stored)
    await settle.pause(context, hand, run)
    assert (await stored.get(hand.job_id)).status == "running"
    assert [row.finished_at is not None for row in await stored.rows(Run)] == [True]


async def test_a_cancel_that_came_meanwhile_wins_over_a_pause(stored: World) -> None:
    context, hand, run = await finished(stored)
    await ask(stored, hand.job_id, pause_requested_at=START, cancel_requested_at=START)
    await settle.pause(context, hand, run)
    assert (await stored.get(hand.job_id)).status == "running"
    await settle.cancel(context, hand, await stored.get(hand.job_id), run)
    assert (await stored.get(hand.job_id)).status == "cancelled"


async def test_a_pause_that_comes_after_the_end_of_the_run_lets_the_job_succeed_and_says_so(stored: World) -> None:
    context, hand, run = await finished(stored)
    await ask(stored, hand.job_id, pause_requested_at=START)
    assert (await succeed(stored, context, hand, run)).status == "succeeded"
    assert "The job ended before it could be paused" in await stored.messages(hand.job_id)
    assert len(await stored.rows(AdapterVersion)) == 1


async def test_paused_while_its_files_are_checked_it_is_never_queued_for_anybody(stored: World) -> None:
    job_id = await stored.job(await stored.project())
    await ask(stored, job_id, pause_requested_at=START)
    await validate(stored.database, stored.settings, claim.Claim(job_id, 0, None))
    job = await stored.get(job_id)
    assert (job.status, job.worker_id, bool(job.training_objects)) == ("paused", None, True)


async def test_a_cancelled_run_that_was_never_started_never_will_be(stored: World) -> None:
    """Whoever was about to start it may only be asleep."""
    context, hand, run = await finished(stored)
    await ask(stored, hand.job_id, cancel_requested_at=START)
    await carry(context, hand)
    assert (await stored.get(hand.job_id)).status == "cancelled"
    assert json.loads((Path(run.folder) / "handle.json").read_text()) == {"given_up": True}
    assert (process.members(label(hand.job_id)), stored.keys(f"model/{hand.job_id}/")) == ([], [])


async def test_where_no_wish_can_be_left_the_run_is_ended_at_once(stored: World) -> None:
    """The disk is full, or the folder is gone."""
    context, hand, run = await finished(stored)
    run.cursor = Cursor(running={"ff/1": "FINE_TUNE"}).as_json()
    task = await asyncio.create_subprocess_exec("sleep", "60", env={"LLAMAFLOW_RUN": hand.job_id})
    assert not folder.of(stored.settings, hand.job_id).train.exists()
    await obey(context, hand, run, Wishes(pause=True))
    assert await task.wait() == -signal.SIGTERM
