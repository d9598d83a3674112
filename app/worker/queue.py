"""The order of the queue as SQL: priority, then fairness between projects, then age; runs that lost their worker before all.

A claim looks at the first few jobs of each project that waits, found through partial indexes (models.py), so that neither
finished jobs nor a long queue of one project make it slower. Parameters are those of `claim.Claimant`.

Whether a job may be taken stands in a `case`: Postgres then expects it of half of them, and reads an index in order until it
has enough; it would else expect it of hardly any, and read and sort the whole queue.
"""

from __future__ import annotations

from typing import NamedTuple

PLACES = 4
"""How many jobs of one project may be picked at once, by as many workers, before they get in each other's way."""

AT_ONCE = 32
"""Jobs that one claim has in view at most."""

_FREE = """(
    j.worker_id is null
    or j.worker_id = any(:dead)
    or (j.worker_id = :worker and j.id <> all(cast(:held as text[])))
    or (j.lease_until < clock_timestamp() and clock_timestamp() < cast(:take_over_until as timestamptz))
)"""

PROFILE = "coalesce(j.spec #>> '{execution,profile}', 'local')"
MEMORY = """coalesce(
    substring(j.spec #>> '{execution,memory}' from '^[0-9]+')::float8
    * case right(j.spec #>> '{execution,memory}', 2) when 'MB' then 1 / 1024.0 when 'TB' then 1024.0 else 1.0 end, 0.0
)"""
"""What a job asks for, in GB."""

_FITS = f"""(
    {PROFILE} = any(:profiles)
    and (cast(:memory as float8) is null or {PROFILE} <> all(:host_bound) or {MEMORY} <= :memory)
)"""

# A run that another machine may still hold is left alone: one that is tied to that machine until it was silent for long; one
# on a cluster only where no disk is shared, by which a new holder can end the old one's Nextflow.
_REACHABLE = """not exists (
    select from runs r join workers w on w.host = r.host and w.pid_namespace = r.pid_namespace
    where r.job_id = j.id and r.finished_at is null
      and not (r.host = :host and (r.boot_id <> :boot_id or r.pid_namespace = :pid_namespace))
      and not (r.profile <> all(:host_bound) and w.capabilities ->> 'runs' = cast(:runs as text))
      and w.heartbeat_at > clock_timestamp() - make_interval(secs => :host_lost_after)
)"""


class Kind(NamedTuple):
    """What is claimed: waiting jobs of one status, those held that count against their project, and what a claimant must have."""

    waiting: str
    held: str
    can: str


_VALIDATION = Kind("validating_files", "o.status = 'validating_files'", "true")
_RUN = Kind("queued", "o.status in ('queued', 'running')", f"{_FITS} and {_REACHABLE}")

_LOST = f"""
    union all
    (select 0, j.id, j.priority, 0, j.created_at from jobs j
     where j.status = 'running' and {_FREE} and {_RUN.can}
     order by j.priority desc, j.created_at, j.id limit {AT_ONCE})
"""  # noqa: S608  made of constants only


def _claim(kind: Kind, lost: str = "") -> str:
    """A statement that takes one job; one row: what was taken (nulls for nothing) and how many might have been."""
    return f"""
with recursive waiting(project_id) as (
    select min(project_id) from jobs where status = '{kind.waiting}'
    union all
    select (select min(j.project_id) from jobs j where j.status = '{kind.waiting}' and j.project_id > w.project_id)
    from waiting w where w.project_id is not null
),
heads as (
    select 1 as later, first.id, first.priority, first.place + held.jobs as place, first.created_at
    from waiting w
    cross join lateral (
        select count(*) as jobs from jobs o where o.project_id = w.project_id and o.worker_id is not null and {kind.held}
    ) held
    cross join lateral (
        select j.id, j.priority, j.created_at, row_number() over (order by j.priority desc, j.created_at, j.id) as place
        from jobs j
        where j.project_id = w.project_id and j.status = '{kind.waiting}'
          and case when {_FREE} and {kind.can} then true else false end
        order by j.priority desc, j.created_at, j.id limit {PLACES}
    ) first
    where w.project_id is not null
    {lost}
),
candidates as materialized (select * from heads order by later, priority desc, place, created_at, id limit {AT_ONCE}),
picked as (
    select j.id, j.worker_id, {PROFILE} as profile, {MEMORY} as memory
    from candidates c join jobs j on j.id = c.id
    where j.status in ('{kind.waiting}', 'running') and {_FREE}
    order by c.later, c.priority desc, c.place, c.created_at, c.id
    limit 1 for update of j skip locked
),
taken as (
    update jobs set fence = jobs.fence + 1, worker_id = :worker,
        lease_until = clock_timestamp() + make_interval(secs => :lease)
    from picked where jobs.id = picked.id
    returning jobs.id, jobs.fence, picked.worker_id as previous, picked.profile, picked.memory
)
select t.id, t.fence, t.previous, t.profile, t.memory, c.jobs
from (select count(*) as jobs from candidates) c left join taken t on true
"""  # noqa: S608  made of constants only


CLAIM_VALIDATION = _claim(_VALIDATION)
CLAIM_RUN = _claim(_RUN, _LOST)
