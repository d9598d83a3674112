"""Who may go on with a run that lost its worker: at once on its own machine, after long silence elsewhere, never two at once."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from app.models import Job, Run, Stage
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, kill, until
from tests.fault.audit import audit
from tests.fault.scene import Behave, Workers, begin, saved, steps
from tests.fault.trainers import Trainers

pytestmark = pytest.mark.fault

LOST_AFTER = 70.0
"""A run whose worker is silent ends a minute before it is taken over elsewhere."""
NAMESPACE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")
KEPT = ("sh", "-c", '"$@" & echo $! >"$PID_FILE"; sleep 300', "sh")
"""The first process of a namespace, which lives on when the worker is killed: with it the kernel would end all the others."""


def machine(folder: Path, name: str) -> dict[str, Any]:
    """Settings of a worker on a machine of this name."""
    boot_id = folder / f"boot-{name}"
    boot_id.write_text(f"boot of {name}\n")
    return {"host_id": name, "boot_id_file": boot_id}


async def knows_another(world: World, job_id: str) -> bool:
    """Whether the worker of a job has told its run that there is another machine: only then does a silent one's run end."""
    return bool(json.loads(folder.of(world.settings, job_id).lease.read_text())["others"])


async def runs(world: World) -> list[tuple[str, bool]]:
    """Host of each run, and whether it is over."""
    return [(run.host, run.finished_at is not None) for run in await world.rows(Run)]


def endless_at_first(folder: Path) -> Path:
    """A head that goes on for long in a job's first run, and in the next one fails with a word."""
    head = folder / "head"
    head.write_text(
        "#!/bin/sh\ncase \"$*\" in *run-1*) exec sleep 300;; esac\necho 'ERROR ~ the second head'; exit 1\n"
    )
    head.chmod(0o755)
    return head


async def goes_over(
    world: World, workers: Workers, folder: Path, profile: str, *, cancel: bool = False, **settings: Any
) -> Job:
    """The worker of machine one dies, and only then machine two gets one, which ends the run before it does anything else."""
    shared = {"nextflow": endless_at_first(folder), "worker_profiles": [profile], "lease_seconds": 3.0, **settings}
    first = workers(**shared, **machine(folder, "one"))
    job_id = await world.job(await world.project(), status="queued", execution={"profile": profile})

    async def launched() -> Any:
        return [run for run in await world.rows(Run) if run.pid is not None]

    (run,) = await until(launched, 30)
    kill(first.pid)
    await asyncio.to_thread(first.wait)
    if cancel:
        await world.cancel(job_id)
    workers(**shared, **machine(folder, "two"))
    job: Job = await until(lambda: world.is_over(job_id), 90)
    ended = process.exit_record(Path(run.folder))
    assert ended is not None
    assert ended.asked
    process.reap(label(job_id), 0)
    return job


async def test_a_cluster_run_goes_over_to_another_machine_that_shares_the_disk_when_the_lease_is_over(
    stored: World, workers: Workers, tmp_path: Path
) -> None:
    job = await goes_over(stored, workers, tmp_path, "slurm", unshared_profiles=[])
    assert "the second head" in (job.error or {})["message"]
    assert await runs(stored) == [("one", True), ("two", True)]


async def test_a_run_that_knew_of_no_other_machine_is_ended_by_the_one_that_goes_on_with_it(
    stored: World, workers: Workers, tmp_path: Path
) -> None:
    job = await goes_over(stored, workers, tmp_path, "local", host_lost_after=5.0)
    assert "the second head" in (job.error or {})["message"]
    assert await runs(stored) == [("one", True), ("two", True)]


@pytest.mark.slow
async def test_a_run_of_another_machine_is_ended_before_its_job_is_called_cancelled(
    stored: World, workers: Workers, tmp_path: Path
) -> None:
    job = await goes_over(stored, workers, tmp_path, "local", cancel=True, host_lost_after=5.0)
    assert (job.status, await runs(stored)) == ("cancelled", [("one", True)])


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_run_in_another_pid_namespace_is_left_alone_until_its_machine_was_silent_for_long(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers, tmp_path: Path
) -> None:
    stub_tasks(seconds="120")
    pid_file = tmp_path / "pid"
    stored.settings = stored.settings.model_copy(update={"host_lost_after": LOST_AFTER})
    first = workers(within=(*NAMESPACE, *KEPT), env={"PID_FILE": str(pid_file)})
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    workers()
    await until(lambda: knows_another(stored, job_id), 60)
    kill(_inside(first.pid, pid_file))
    silent = time.monotonic()
    await until(lambda: _second(stored), 180)
    assert time.monotonic() - silent > LOST_AFTER - 1
    stub_tasks(seconds="1")
    await audit(stored, job_id, receiver=receiver)
    assert [over for _, over in await runs(stored)] == [True, True]
    found = {(stage.process, stage.status) for stage in await stored.rows(Stage)}
    assert {(name, "cached") for name in ("DOWNLOAD_DATA", "FETCH_MODEL", "PREPARE_DATA")} <= found


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_run_of_another_machine_is_left_alone_until_that_was_silent_for_long(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers, tmp_path: Path
) -> None:
    stub_tasks(seconds="120")
    stored.settings = stored.settings.model_copy(update={"host_lost_after": LOST_AFTER})
    first = workers(**machine(tmp_path, "one"))
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    workers(**machine(tmp_path, "two"))
    await until(lambda: knows_another(stored, job_id), 60)
    kill(first.pid)
    silent = time.monotonic()
    await asyncio.to_thread(first.wait)
    await until(lambda: _second(stored), 180)
    assert time.monotonic() - silent > LOST_AFTER - 1
    stub_tasks(seconds="1")
    await audit(stored, job_id, receiver=receiver)
    assert [host for host, _ in await runs(stored)] == ["one", "two"]


@pytest.mark.slow
async def test_a_run_whose_only_machine_lost_the_database_goes_on(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers
) -> None:
    stub_tasks(seconds="25")
    first = workers(host_lost_after=10.0)
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    kill(first.pid)
    await asyncio.to_thread(first.wait)
    await asyncio.sleep(12)  # longer than the lease: with another host the shim would have ended the run
    (run,) = await stored.rows(Run)
    assert process.exit_record(Path(run.folder)) is None
    workers(host_lost_after=10.0)
    await audit(stored, job_id, receiver=receiver)
    assert (steps(stored, job_id), len(await stored.rows(Run))) == (dict.fromkeys(range(1, 11), 1), 1)


@pytest.mark.slow
async def test_after_a_restart_of_the_machine_its_run_is_resumed_by_the_boot_id(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers, tmp_path: Path
) -> None:
    stub_tasks(seconds="5")
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("before\n")
    first = workers(boot_id_file=boot_id)
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    kill(first.pid)
    for member in process.members(label(job_id)):
        kill(member.pid)
    await asyncio.to_thread(first.wait)
    boot_id.write_text("after\n")
    workers(boot_id_file=boot_id)
    await audit(stored, job_id, receiver=receiver)
    assert [run.boot_id for run in await stored.rows(Run)] == ["before", "after"]
    assert sorted(steps(stored, job_id)) == list(range(1, 11))
    assert (folder.of(stored.settings, job_id).run(1) / "handle.json").exists()


async def _second(world: World) -> bool:
    return len(await world.rows(Run)) == 2


def _inside(outer: int, pid_file: Path) -> int:
    """The pid by which this namespace knows the worker whose own namespace wrote another one down."""
    inner = pid_file.read_text().strip()
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        numbers = lines.get("NSpid", "").split()
        if len(numbers) == 2 and numbers[1] == inner and _descends(int(numbers[0]), outer):
            return int(numbers[0])
    raise AssertionError("the worker is not there")


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False
