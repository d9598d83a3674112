"""What a worker does with what others left: runs that never started, machines that restarted, jobs that end their workers.

Nextflow is stood in for by a script that ends as it is told: only its end matters here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.models import Run, new_id
from app.worker import folder, launch, pool, run
from app.worker.claim import Claim
from app.worker.outage import NEVER, Recovery
from app.worker.validate import validate
from tests.app.worker.services import World, until

pytestmark = pytest.mark.db


def launcher(world: World, script: str) -> None:
    """Let the worker start this instead of Nextflow."""
    path = world.settings.state_dir / "nextflow"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    world.settings = world.settings.model_copy(update={"nextflow": path})


async def ended(world: World, job_id: str) -> Any:
    async with world.working():
        return await until(lambda: world.is_over(job_id), 90)


async def left_run(world: World, job_id: str, boot_id: str) -> Run:
    """The row of a run that a worker left without an end."""
    job = await world.get(job_id)
    home = folder.of(world.settings, job_id)
    here = launch.process.here(world.settings.boot_id_file)
    row = Run(
        id=new_id("run_"), project_id=job.project_id, job_id=job_id, attempt=1, fence=0, profile="local",
        session_uuid="11111111-2222-3333-4444-555555555555", folder=str(home.run(1)), host=world.settings.hostname,
        boot_id=boot_id or here.boot_id, pid_namespace=here.pid_namespace,
    )  # fmt: skip
    async with world.database.transaction() as db:
        db.add(row)
    home.run(1).mkdir(parents=True)
    return row


async def test_a_run_lost_three_times_without_progress_fails(world: World) -> None:
    launcher(world, "kill -9 $$")
    job_id = await world.job(await world.project(), status="queued")
    job = await ended(world, job_id)
    assert (job.status, job.error["code"]) == ("failed", "crash_loop")
    assert [run.exit_status for run in await world.rows(Run)] == [-9, -9, -9]


async def test_what_nextflow_itself_says_is_told(world: World) -> None:
    launcher(world, "echo 'ERROR ~ Unknown configuration profile: moon'; exit 1")
    job = await ended(world, await world.job(await world.project(), status="queued"))
    assert (job.status, job.error["code"]) == ("failed", "internal_error")
    assert "profile: moon" in job.error["message"]


async def test_a_run_whose_process_was_never_started_is_launched_anew(world: World) -> None:
    launcher(world, "echo 'ERROR ~ second'; exit 1")
    job_id = await world.job(await world.project(), status="queued")
    row = await left_run(world, job_id, "")
    job = await ended(world, job_id)
    assert "second" in job.error["message"]
    assert [run.attempt for run in await world.rows(Run)] == [1, 2]
    assert json.loads((Path(row.folder) / "handle.json").read_text()) == {"given_up": True}


async def test_after_a_restart_of_the_machine_the_run_is_started_again(world: World) -> None:
    launcher(world, "echo 'ERROR ~ second'; exit 1")
    job_id = await world.job(await world.project(), status="running")
    row = await left_run(world, job_id, "an earlier boot")
    pid_of_another = {"pid": 1, "started": "1", "boot_id": "an earlier boot", "pid_namespace": row.pid_namespace}
    (Path(row.folder) / "handle.json").write_text(json.dumps(pid_of_another))
    job = await ended(world, job_id)
    assert "second" in job.error["message"]
    assert "The pipeline was lost; it is started again from what it had done." in await world.messages(job_id)


async def test_a_dataset_that_ends_its_workers_fails_the_job(world: World) -> None:
    job_id = await world.job(await world.project())
    dying = world.settings.model_copy(update={"s3_endpoint": "not a url"})
    for number in range(3):
        claim = Claim(job_id, 0, f"worker-{number}")
        try:
            await validate(world.database, dying, claim)
        except ValueError:
            assert number < 2
    job = await world.get(job_id)
    assert (job.status, job.error["code"]) == ("failed", "crash_loop")


async def test_a_job_that_cannot_have_its_folder_says_so(world: World) -> None:
    launcher(world, "exit 1")
    (world.settings.state_dir / "runs").write_text("a file where a folder should be")
    job = await ended(world, await world.job(await world.project(), status="queued"))
    assert (job.status, job.error["code"]) == ("failed", "internal_error")
    assert "could not be started" in job.error["message"]


def test_no_secret_of_the_worker_reaches_the_tasks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = launch._environment(world.settings, {"NXF_OFFLINE": "true"})
    assert (made["NXF_OFFLINE"], made["OMP_NUM_THREADS"]) == ("true", "1")
    assert "canary" not in made.values()


def test_after_an_outage_a_whole_lease_passes_before_anything_is_taken_over() -> None:
    start, recovery = datetime(2026, 1, 1, tzinfo=UTC), Recovery(15.0)
    at = [start + timedelta(seconds=seconds) for seconds in range(120)]
    assert recovery.until == NEVER
    for second in (0, 5, 10):
        recovery.answered(at[second])
        assert recovery.until == NEVER
    recovery.answered(at[15])
    assert recovery.until == at[30]
    recovery.failed()
    recovery.answered(at[20])
    assert recovery.until == NEVER
    recovery.answered(at[35])
    assert recovery.until == at[50]


def test_a_database_that_stood_still_for_a_lease_was_away_although_nothing_failed() -> None:
    start, recovery = datetime(2026, 1, 1, tzinfo=UTC), Recovery(15.0)
    for second in (0, 10, 20, 40, 50):
        recovery.answered(start + timedelta(seconds=second))
    assert recovery.until == NEVER


async def test_a_job_to_be_cancelled_never_fails_for_what_its_worker_stumbles_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STUMBLE_SECONDS", 0.01)
    carry, tries = run.carry, itertools.count(1)

    async def stumbling(context: Any, hand: Any) -> None:
        if next(tries) <= 4:
            raise RuntimeError("a mistake of ours")
        await carry(context, hand)

    monkeypatch.setattr(run, "carry", stumbling)
    job_id = await world.job(await world.project(), status="queued")
    await world.cancel(job_id)
    job = await ended(world, job_id)
    assert (job.status, next(tries)) == ("cancelled", 6)


async def test_a_job_that_its_worker_stumbles_over_three_times_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STUMBLE_SECONDS", 0.01)

    async def stumbling(context: Any, hand: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(run, "carry", stumbling)
    job = await ended(world, await world.job(await world.project(), status="queued"))
    assert (job.status, job.error["code"]) == ("failed", "crash_loop")


async def test_a_job_claimed_for_its_run_while_the_hand_of_its_check_lets_go_is_claimed_once(
    stored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = stored
    launcher(world, "sleep 2; echo 'ERROR ~ the end'; exit 1")
    let_go, fences = pool.release, []

    async def slowly(db: Any, claim: Claim, worker: str) -> None:
        fences.append(claim.fence)
        await asyncio.sleep(0.5)
        await let_go(db, claim, worker)

    monkeypatch.setattr(pool, "release", slowly)
    job = await ended(world, await world.job(await world.project()))
    assert (job.fence, fences) == (2, [1, 2])
    assert [made.fence for made in await world.rows(Run)] == [2]
