"""The clock of a worker's machine jumps about by hours: leases, ages and deadlines are the database's, and nothing happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.models import Run
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, until
from tests.fault.audit import audit
from tests.fault.scene import Behave, Workers, begin, saved, steps
from tests.fault.trainers import Trainers

pytestmark = pytest.mark.fault

JUMPS = """
import itertools, time
real, hours = time.time, itertools.cycle([0, 30, -30, 2, 700, -700])
time.time = lambda: real() + 3600 * next(hours)
"""
"""Read by Python at the start of the worker: another time at every look. Signatures for S3 keep theirs, as S3 would refuse them."""


async def test_a_worker_whose_clock_jumps_by_hours_keeps_its_lease_and_ends_its_job_once(
    stored: World, stub_tasks: Behave, workers: Workers, receiver: Receiver, trainers: Trainers, tmp_path: Path
) -> None:
    stub_tasks(seconds="4")
    (tmp_path / "sitecustomize.py").write_text(JUMPS)
    workers(env={"PYTHONPATH": str(tmp_path)})
    job_id = await begin(stored, receiver)
    await until(lambda: saved(stored), 180)
    workers(env={"PYTHONPATH": str(tmp_path)})
    await audit(stored, job_id, receiver=receiver)
    assert (steps(stored, job_id), len(await stored.rows(Run))) == (dict.fromkeys(range(1, 11), 1), 1)
    assert (await stored.get(job_id)).fence == 2
