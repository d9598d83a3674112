"""Tells, once a job, that it waits for something no registered worker has: its profile, or so much memory.

The job stays queued: a worker that has it may come any time.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import Text

from app.db import is_outage
from app.events import service as events
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.worker.capacity import HOST_BOUND
from app.worker.context import Context
from app.worker.presence import OTHERS_SECONDS
from app.worker.queue import MEMORY, PROFILE

AT_ONCE = 100

_UNFIT = f"""
with lately as (
    select capabilities -> 'profiles' as profiles, (capabilities ->> 'memory')::float8 as memory from workers
    where heartbeat_at > clock_timestamp() - make_interval(secs => :seen) and (capabilities ->> 'slots')::int > 0
)
select j.id, {PROFILE} as profile, {MEMORY} as asked,
    exists (select from lately w where jsonb_exists(w.profiles, {PROFILE})) as placed,
    (select max(w.memory) from lately w where jsonb_exists(w.profiles, {PROFILE})) as most
from jobs j
where j.status = 'queued' and j.lacks is null and j.created_at < clock_timestamp() - make_interval(secs => :grace)
  and not exists (
      select from lately w where jsonb_exists(w.profiles, {PROFILE})
      and (w.memory is null or {PROFILE} <> all(:host_bound) or {MEMORY} <= w.memory)
  )
order by j.project_id, j.priority desc, j.created_at, j.id
limit {AT_ONCE}
"""  # noqa: S608  made of constants only

log = structlog.get_logger("worker.unfit")


async def tell_for_ever(context: Context) -> None:
    """Look every lease time: by then a worker that was to come has come."""
    while True:
        await asyncio.sleep(context.settings.lease_seconds)
        try:
            async with context.database.transaction() as db:
                await tell(db, context.settings.lease_seconds)
        except Exception as problem:
            if not is_outage(problem):
                raise


async def tell(db: AsyncSession, grace: float) -> list[str]:
    """Record a warning for every queued job that nobody can run and that was not told so before.

    Args:
        db: The transaction.
        grace: Seconds a job waits before that.
    Returns:
        Ids of the jobs told.
    """
    statement = text(_UNFIT).bindparams(bindparam("host_bound", type_=ARRAY(Text)))
    given = {"seen": OTHERS_SECONDS, "grace": grace, "host_bound": list(HOST_BOUND)}
    told = []
    for row in (await db.execute(statement, given)).all():
        job = await lifecycle.lock(db, row.id)
        if job.status != Status.QUEUED or job.lacks is not None:
            continue
        job.lacks, message = _lack(row)
        await events.record(db, job, message, level="warn", data={"lacks": job.lacks})
        log.warning("nobody_can_run", job=job.id, lacks=job.lacks)
        told.append(job.id)
    return told


def _lack(row: Any) -> tuple[str, str]:
    """What is missing, and a sentence on it."""
    if not row.placed:
        return "profile", (
            f"No worker runs the profile {row.profile}: the job waits for one. "
            f"Start a worker with LLAMAFLOW_WORKER_PROFILES={row.profile}, or cancel the job and choose another profile."
        )
    return "memory", (
        f"The job asks for {row.asked:g} GB of memory and no worker holds more than {row.most:g} GB: it waits for one that does. "
        "Start a worker with a larger LLAMAFLOW_WORKER_MEMORY, or cancel the job and ask for less."
    )
