"""Claims: how soon a free worker takes a queued job, and what the claim costs when the table is full of finished ones."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

import psycopg
from sqlalchemy import text

from app.embedded import part
from app.models import new_id
from app.worker.claim import Claimant, claim_run, claim_validation
from benchmarks.load import percentile
from benchmarks.place import Place

FINISHED = (1_000, 100_000, 1_000_000)
LEASE = 15.0
TRIES = 200
GOAL_MS = 15

_JOB = """
    insert into jobs (id, project_id, api_key_id, status, spec, model, base, training_file, seed, request_hash,
                      training_objects, created_at, finished_at)
    select {id}, k.project_id, k.id, '{status}', '{{"model": "tiny", "training_file": "x"}}', 'tiny',
           '{{"id": "tiny", "kind": "path", "location": "/nowhere"}}', 'file-x', 0, 'benchmark',
           '[{{"uri": "s3://x/y", "etag": "x", "size": 1}}]',
           clock_timestamp() - make_interval(secs => {age}), {finished}
    from api_keys k {source} limit {limit}
"""


def queue(db: psycopg.Connection[Any]) -> str:
    """Put a job into the queue and commit; its id."""
    job_id = new_id("ftjob-")
    with db.transaction():
        db.execute(_JOB.format(id=f"'{job_id}'", status="queued", age=0, finished="null", source="", limit=1))
        db.execute("select pg_notify('llamaflow_jobs', %s)", [job_id])
    return job_id


def fill(db: psycopg.Connection[Any], count: int) -> None:
    """Bring the number of finished jobs to `count`."""
    there = db.execute("select count(*) from jobs where status = 'succeeded'").fetchone()
    more = count - (there[0] if there else 0)
    source = f"cross join generate_series(1, {more}) n"
    finished = _JOB.format(
        id="'ftjob-' || gen_random_uuid()", status="succeeded", age="n", finished="clock_timestamp()", source=source,
        limit=more,
    )  # fmt: skip
    db.execute(finished)
    db.execute("vacuum analyze jobs")


def cost(place: Place, *, quick: bool) -> dict[str, Any]:
    """Milliseconds of the claim statements, over a connection that is open, with and without something to claim."""
    found: dict[str, Any] = {}
    with psycopg.connect(place.url, autocommit=True) as db:
        for count in FINISHED[: 2 if quick else 3]:
            fill(db, count)
            found[f"{count:,} finished jobs"] = asyncio.run(_cost(place, db))
    return found


async def _cost(place: Place, db: psycopg.Connection[Any]) -> dict[str, Any]:
    who = Claimant("worker-benchmark", LEASE, "here", "boot", "1", ["local"], 600.0)
    database = place.database()
    times: dict[str, list[float]] = {"run_ms": [], "empty_ms": [], "validation_empty_ms": []}
    for _ in range(TRIES):
        queue(db)
        for name, claim in (("run_ms", claim_run), ("empty_ms", claim_run), ("validation_empty_ms", claim_validation)):
            async with database.transaction() as session:
                await session.execute(text("select 1"))
                began = time.perf_counter()
                taken = await claim(session, who)
                times[name].append(time.perf_counter() - began)
            assert (taken is None) == (name != "run_ms"), name
        db.execute("delete from jobs where status = 'queued'")
    await database.close()
    return {name: round(statistics.median(values) * 1000, 2) for name, values in times.items()}


def latency(place: Place, *, jobs: int) -> dict[str, Any]:
    """Milliseconds from the commit of a queued job to its claim by a worker that is free, both by the database's clock.

    Its Nextflow ends at once, so that the worker is free again.
    """
    ends = place.settings.state_dir / "ends-at-once"
    ends.write_text("#!/bin/sh\nexit 1\n")
    ends.chmod(0o755)
    env = place.environment() | {"LLAMAFLOW_NEXTFLOW": str(ends), "LLAMAFLOW_WORKER_SLOTS": "1"}
    worker = part.start("worker", [part.CLI, "worker"], state=place.settings.state_dir, env=env)
    try:
        with psycopg.connect(place.url, autocommit=True) as db:
            _ready(db)
            times = sorted(_claimed_after(db) for _ in range(jobs))
    finally:
        worker.stop()
    return {
        "jobs": jobs,
        "median_ms": round(statistics.median(times) * 1000, 1),
        "p95_ms": round(percentile(times, 95) * 1000, 1),
        "goal_ms": GOAL_MS,
    }


def _ready(db: psycopg.Connection[Any]) -> None:
    """Wait until the worker has ended a first job."""
    _claimed_after(db)


def _claimed_after(db: psycopg.Connection[Any]) -> float:
    job_id = queue(db)
    committed = db.execute("select clock_timestamp()").fetchone()
    assert committed is not None
    deadline = time.monotonic() + 60
    claimed = None
    while claimed is None:
        claimed = db.execute(
            "select lease_until - make_interval(secs => %s) from jobs where id = %s and worker_id is not null",
            [LEASE, job_id],
        ).fetchone()
        if time.monotonic() > deadline:
            raise SystemExit("no worker claims")
        time.sleep(0.005)
    while db.execute("select finished_at from jobs where id = %s", [job_id]).fetchone() == (None,):
        time.sleep(0.02)
    time.sleep(0.1)  # the hand lets go
    return float((claimed[0] - committed[0]).total_seconds())


def measure(place: Place, *, quick: bool) -> dict[str, Any]:
    """Both."""
    print("  latency", file=sys.stderr)
    found: dict[str, Any] = {"from commit to claim": latency(place, jobs=20 if quick else 100)}
    print("  cost", file=sys.stderr)
    return found | cost(place, quick=quick)
