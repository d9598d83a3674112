"""Claims, leases and fences: the statements by which many workers share one queue without ever sharing a job.

A claim takes a job nobody holds, or whose holder is gone, sets the lease and raises the fence, so that every later write of
the old holder is refused. All times are the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import BigInteger, Text

from app.worker import queue
from app.worker.capacity import HOST_BOUND

TRIES = 10
ALWAYS = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Claim:
    """A job that is ours while nobody raises the fence.

    Attributes:
        job_id: Which.
        fence: Ours.
        previous: The worker it was taken from, whose lease was over.
        memory: What it counts against this machine, in GB.
    """

    job_id: str
    fence: int
    previous: str | None
    memory: float = 0.0


@dataclass(frozen=True)
class Claimant:
    """Who claims, and what for.

    Attributes:
        worker: The worker's id.
        lease: Seconds.
        host: Name of this machine, its boot id and the PID namespace: runs of theirs can be followed from here.
        profiles: Those this worker can run.
        host_lost_after: Seconds of silence after which another machine's runs are given up.
        memory: GB that are left on this machine; None for as much as is asked for.
        runs: Which runs folder this worker has: workers with the same one share its disk.
        dead: Workers known to be dead: their leases need not be waited for.
        held: The jobs this worker knows it holds; one that is its own beside these is taken again: the answer to its claim
            was lost. None to take no job of its own.
        take_over_until: Until when, by the database's clock, expired leases may be taken; see outage.py.
    """

    worker: str
    lease: float
    host: str
    boot_id: str
    pid_namespace: str
    profiles: list[str]
    host_lost_after: float
    memory: float | None = None
    runs: str | None = None
    dead: list[str] = field(default_factory=list)
    held: list[str] | None = None
    take_over_until: datetime = ALWAYS


async def claim_validation(db: AsyncSession, who: Claimant) -> Claim | None:
    """Take a job whose dataset is to be checked."""
    return await _claim(db, queue.CLAIM_VALIDATION, who)


async def claim_run(db: AsyncSession, who: Claimant) -> Claim | None:
    """Take a job to run: first those that run already and lost their worker, then by priority, fairness between projects, age."""
    return await _claim(db, queue.CLAIM_RUN, who)


async def _claim(db: AsyncSession, statement: str, who: Claimant) -> Claim | None:
    """Run a claim of queue.py; anew when others were quicker with every job it had in view."""
    known: dict[str, Any] = vars(who) | {"host_bound": list(HOST_BOUND)}
    used = {name: value for name, value in known.items() if f":{name}" in statement}
    types: list[Any] = [
        bindparam(name, type_=ARRAY(Text)) for name in ("dead", "held", "profiles", "host_bound") if name in used
    ]
    prepared = text(statement).bindparams(*types)
    for _ in range(TRIES):
        row = (await db.execute(prepared, used)).one()
        if row.id is not None:
            previous = None if row.previous == who.worker else row.previous
            return Claim(row.id, row.fence, previous, row.memory if row.profile in HOST_BOUND else 0.0)
        if row.jobs == 0:
            break
    return None


async def renew(db: AsyncSession, worker: str, lease: float, held: Iterable[tuple[str, int]]) -> set[str]:
    """Renew the leases of jobs held, also expired ones while their fence is unchanged.

    Args:
        worker: The worker's id.
        lease: Seconds from now.
        held: Job id and fence of each.
    Returns:
        Ids of those still ours. The hands on the others must stop.
    """
    pairs = list(held)
    rows = await db.execute(
        text(
            "update jobs set lease_until = clock_timestamp() + make_interval(secs => :lease) "
            "from unnest(:ids, :fences) as h(id, fence) "
            "where jobs.id = h.id and jobs.fence = h.fence and jobs.worker_id = :worker returning jobs.id"
        ).bindparams(bindparam("ids", type_=ARRAY(Text)), bindparam("fences", type_=ARRAY(BigInteger))),
        {"lease": lease, "worker": worker, "ids": [job for job, _ in pairs], "fences": [fence for _, fence in pairs]},
    )
    return {row[0] for row in rows}


async def release(db: AsyncSession, claim: Claim, worker: str) -> None:
    """Give a job back; what runs of it runs on. Nothing happens if it is ours no more."""
    await db.execute(
        text(
            "with freed as (update jobs set worker_id = null, lease_until = null "
            "where id = :id and fence = :fence and worker_id = :worker returning id) "
            "select pg_notify('llamaflow_jobs', id) from freed"
        ),
        {"id": claim.job_id, "fence": claim.fence, "worker": worker},
    )
