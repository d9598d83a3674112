"""What one worker can take, what it leaves to others, and what a user is told of a job that nobody can run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from app.settings import Settings
from app.worker import capacity, claim, presence, unfit
from app.worker.capacity import Capacity
from app.worker.claim import Claimant
from tests.app.worker.services import World

ANN = Claimant("worker-ann", 30.0, "here", "boot", "ns", ["local"], 600.0)


async def take(world: World, who: Claimant) -> str | None:
    async with world.database.transaction() as db:
        taken = await claim.claim_run(db, who)
    return None if taken is None else taken.job_id


async def told(world: World) -> list[str]:
    async with world.database.transaction() as db:
        return await unfit.tell(db, 0.0)


async def registered(world: World, *, profiles: list[str], memory: float | None = None, slots: int = 1) -> None:
    async with world.database.transaction() as db:
        me = presence.myself(world.settings)
        await presence.register(db, replace(me, capacity=Capacity(slots, profiles, memory, None)))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("files", "driver", "count"),
    [
        ([], [], 0),
        (["nvidiactl", "nvidia-uvm"], ["0000:01:00.0"], 1),
        (["nvidia0", "nvidia1", "nvidiactl"], ["0000:01:00.0"] * 1, 2),
    ],
)
def test_gpus_are_counted_by_their_device_files(
    tmp_path: Path, files: list[str], driver: list[str], count: int
) -> None:
    for folder, names in (("dev", files), ("driver", driver)):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    assert capacity.gpus(tmp_path / "dev", tmp_path / "driver") == count
    assert capacity.gpus(tmp_path / "no", tmp_path / "none") == 0


@pytest.mark.unit
def test_a_profile_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, worker_profiles=["local", "moon"])
    with pytest.raises(ValueError, match=r"'moon'.*There are: .*docker.*local.*slurm"):
        capacity.of(settings)


@pytest.mark.unit
def test_workers_of_one_runs_folder_know_each_other_by_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert capacity.identity(here) == capacity.identity(here)
    assert capacity.identity(here) != capacity.identity(there)
    (tmp_path / "file").touch()
    assert capacity.identity(tmp_path / "file") is None


@pytest.mark.db
@pytest.mark.parametrize(
    ("asked", "left", "taken"),
    [
        (None, 0.0, True),
        ("16 GB", None, True),
        ("16 GB", 16.0, True),
        ("17 GB", 16.0, False),
        ("512 MB", 0.5, True),
        ("1 TB", 1000.0, False),
        ("1TB", 1024.0, True),
    ],
)
async def test_a_job_that_asks_for_more_memory_than_is_left_is_left(
    world: World, asked: str | None, left: float | None, taken: bool
) -> None:
    job_id = await world.job(await world.project(), status="queued", execution={"memory": asked})
    assert await take(world, replace(ANN, memory=left)) == (job_id if taken else None)


@pytest.mark.db
async def test_what_a_job_on_a_cluster_asks_for_does_not_count_here(world: World) -> None:
    asked = {"memory": "64 GB", "profile": "slurm"}
    await world.job(await world.project(), status="queued", execution=asked)
    async with world.database.transaction() as db:
        taken = await claim.claim_run(db, replace(ANN, profiles=["slurm"], memory=1.0))
    assert taken is not None
    assert taken.memory == 0.0


@pytest.mark.db
async def test_a_claim_says_what_it_counts_against_this_machine(world: World) -> None:
    await world.job(await world.project(), status="queued", execution={"memory": "6 GB"})
    async with world.database.transaction() as db:
        taken = await claim.claim_run(db, replace(ANN, memory=8.0))
    assert taken is not None
    assert taken.memory == 6.0


@pytest.mark.db
async def test_a_job_whose_profile_nobody_runs_stays_queued_and_says_so_once(world: World) -> None:
    await registered(world, profiles=["local"])
    fit = await world.job(await world.project(), status="queued")
    unplaced = await world.job((await world.get(fit)).project_id, status="queued", execution={"profile": "slurm"})
    assert await told(world) == [unplaced]
    assert await told(world) == []
    warning = (await world.events(unplaced))[-1]
    assert (warning.level, warning.data) == ("warn", {"lacks": "profile"})
    assert "LLAMAFLOW_WORKER_PROFILES=slurm" in warning.message
    assert (await world.get(unplaced)).status == "queued"


@pytest.mark.db
async def test_a_job_that_asks_for_more_than_any_worker_holds_says_so(world: World) -> None:
    await registered(world, profiles=["local"], memory=16.0)
    await registered(world, profiles=["local"], memory=32.0)
    await registered(world, profiles=["slurm"], memory=None)
    job_id = await world.job(await world.project(), status="queued", execution={"memory": "64 GB"})
    assert await told(world) == [job_id]
    assert "asks for 64 GB of memory and no worker holds more than 32 GB" in (await world.messages(job_id))[-1]


@pytest.mark.db
async def test_a_worker_that_was_not_seen_of_late_or_has_no_slot_counts_as_none(world: World) -> None:
    await registered(world, profiles=["local"], slots=0)
    await registered(world, profiles=["local"])
    job_id = await world.job(await world.project(), status="queued")
    assert await told(world) == []
    async with world.database.transaction() as db:
        await db.execute(text("update workers set heartbeat_at = clock_timestamp() - interval '10 minutes'"))
    assert await told(world) == [job_id]


@pytest.mark.db
async def test_a_worker_registers_what_it_can_take(world: World) -> None:
    world.settings = world.settings.model_copy(update={"worker_memory": 8.0, "worker_profiles": ["slurm", "local"]})
    async with world.database.transaction() as db:
        await presence.register(db, presence.myself(world.settings))
        (row,) = (await db.execute(text("select capabilities from workers"))).one()
    assert (row["slots"], row["profiles"], row["memory"]) == (1, ["local", "slurm"], 8.0)
    assert row["runs"] == capacity.identity(world.settings.runs)
