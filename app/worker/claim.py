"""Claims, leases and fences: the statements by which many workers share one queue without ever sharing a job.

A claim takes a job nobody holds, or whose holder is gone, sets the lease and raises the fence, so that every later write of
the old holder is refused. All times are the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import BigInteger, Text


@dataclass(frozen=True)
class Claim:
    """A job that is ours while nobody raises the fence. previous: the worker it was taken from, whose lease was over."""

    job_id: str
    fence: int
    previous: str | None


@dataclass(frozen=True)
class Claimant:
    """Who claims, and what for.

    Attributes:
        worker: The worker's id.
        lease: Seconds.
        host: Name of this machine, its boot id and the PID namespace: runs of theirs can be followed from here.
        profiles: Those this worker can run.
        host_lost_after: Seconds of silence after which another machine's runs are given up.
        dead: Workers known to be dead: their leases need not be waited for.
        take_over: Whether expired leases may be taken; not right after a database outage, when nobody could renew.
    """

    worker: str
    lease: float
    host: str
    boot_id: str
    pid_namespace: str
    profiles: list[str]
    host_lost_after: float
    dead: list[str] = field(default_factory=list)
    take_over: bool = True


_FREE = """(
    j.worker_id is null
    or (:take_over and j.lease_until < clock_timestamp())
    or j.worker_id = any(:dead)
)"""

_TAKE = """
    update jobs set fence = jobs.fence + 1, worker_id = :worker,
        lease_until = clock_timestamp() + make_interval(secs => :lease)
    from picked where jobs.id = picked.id
    returning jobs.id, jobs.fence, picked.worker_id
"""

_VALIDATE = f"""
with picked as (
    select j.id, j.worker_id from jobs j
    where j.status = 'validating_files' and {_FREE}
    order by j.priority desc, j.created_at, j.id
    limit 1 for update of j skip locked
)
{_TAKE}
"""  # noqa: S608  made of constants only

# A run that another machine may still hold is left alone until that machine was silent for long.
_RUN = f"""
with picked as (
    select j.id, j.worker_id from jobs j
    left join lateral (
        select host, boot_id, pid_namespace, finished_at from runs where job_id = j.id order by attempt desc limit 1
    ) r on true
    where j.status in ('queued', 'running') and {_FREE}
      and coalesce(j.spec #>> '{{execution,profile}}', 'local') = any(:profiles)
      and (r.host is null or r.finished_at is not null
           or (r.host = :host and (r.boot_id <> :boot_id or r.pid_namespace = :pid_namespace))
           or not exists (
               select 1 from workers w where w.host = r.host and w.pid_namespace = r.pid_namespace
               and w.heartbeat_at > clock_timestamp() - make_interval(secs => :host_lost_after)
           ))
    order by j.status = 'running' desc, j.priority desc,
        (select count(*) from jobs o where o.project_id = j.project_id and o.status = 'running'), j.created_at, j.id
    limit 1 for update of j skip locked
)
{_TAKE}
"""  # noqa: S608  made of constants only


async def claim_validation(db: AsyncSession, who: Claimant) -> Claim | None:
    """Take a job whose dataset is to be checked."""
    return await _claim(db, _VALIDATE, who)


async def claim_run(db: AsyncSession, who: Claimant) -> Claim | None:
    """Take a job to run: first those that run already and lost their worker, then by priority, fairness between projects, age."""
    return await _claim(db, _RUN, who)


async def _claim(db: AsyncSession, statement: str, who: Claimant) -> Claim | None:
    prepared = text(statement)
    used = {name: value for name, value in vars(who).items() if f":{name}" in statement}
    types: list[Any] = [bindparam(name, type_=ARRAY(Text)) for name in ("dead", "profiles") if name in used]
    row = (await db.execute(prepared.bindparams(*types), used)).first()
    return None if row is None else Claim(row[0], row[1], row[2])


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
