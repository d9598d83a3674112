"""Memory: the API and worker, and as many real Nextflow heads as one worker supervises, each in the middle of a stub training.

Proportional set size (PSS) counts a page shared by n processes a nth to each, so that the sum is what the machine is short of.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from app.embedded import part
from app.nextflow import process
from app.worker.launch import label
from benchmarks.place import KEY, MODEL, Place

GOAL_GB_OF_40 = 10
START_SECONDS = 900.0
FREE_BYTES_EACH = 450 << 20


def measure(place: Place, *, heads: int) -> dict[str, Any]:
    """PSS of the API, the worker and all heads with their tasks, while all train."""
    room = psutil.virtual_memory().available // FREE_BYTES_EACH
    heads = max(1, min(heads, room))
    own = {
        "LLAMAFLOW_WORKER_SLOTS": str(heads), "LLAMAFLOW_STUB_RUN": "1", "LLAMAFLOW_STUB_SECONDS": "3600",
        "LLAMAFLOW_TASK_ENV": "LLAMAFLOW_STUB_SECONDS",
    }  # fmt: skip
    worker = part.start("worker", [part.CLI, "worker"], state=place.settings.state_dir, env=place.environment() | own)
    jobs: list[str] = []
    try:
        with place.serving() as api:
            jobs = _submit(api.port, api.upload(), heads)
            _wait_training(place, heads)
            runs = [sum(_pss(member.pid) for member in process.members(label(job))) for job in jobs]
            api_mb, worker_mb = _pss(api.part.process.pid), _pss(worker.process.pid)
    finally:
        for job in jobs:
            for member in process.members(label(job)):
                psutil.Process(member.pid).kill()
        worker.stop()
    return {
        "heads": heads,
        "api_mb": round(api_mb),
        "worker_mb": round(worker_mb),
        "a run_mb (head, shim, task)": round(sum(runs) / len(runs)),
        "all runs_gb": round(sum(runs) / 1024, 2),
        "for 40_gb": round(sum(runs) / len(runs) * 40 / 1024, 2),
        "goal for 40_gb": GOAL_GB_OF_40,
    }


def _submit(port: int, uploaded: str, count: int) -> list[str]:
    url = f"http://127.0.0.1:{port}/v1/fine_tuning/jobs"
    headers = {"authorization": f"Bearer {KEY}"}
    bodies = [{"model": MODEL, "training_file": uploaded, "seed": number} for number in range(count)]
    with httpx.Client(headers=headers, trust_env=False, timeout=60) as http:
        return [str(http.post(url, json=body).raise_for_status().json()["id"]) for body in bodies]


def _wait_training(place: Place, count: int) -> None:
    """Wait until every job's training has told its first step."""
    deadline = time.monotonic() + START_SECONDS
    with psycopg.connect(place.url, autocommit=True) as db:
        while True:
            rows = db.execute("select status, count(*) from jobs where progress ->> 'stage' = 'FINE_TUNE' group by 1")
            training = dict(rows.fetchall()).get("running", 0)
            if training >= count:
                return
            if time.monotonic() > deadline:
                found = db.execute("select status, progress, error from jobs").fetchall()
                raise SystemExit(f"only {training} of {count} train: {found}")
            print(f"  {training} of {count} train", file=sys.stderr)
            time.sleep(5)


def _pss(pid: int) -> float:
    """MB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
