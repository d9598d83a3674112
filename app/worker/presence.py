"""This worker's row: where it is, what it can take, that it lives, and what it knows of the others. Its heartbeat holds the leases."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import func

from app.models import Job, Worker, new_id
from app.nextflow import process
from app.nextflow.process import Here
from app.nextflow.shim import started_at
from app.settings import Settings
from app.worker import capacity
from app.worker.capacity import Capacity

OTHERS_SECONDS = 60.0
"""Another worker counts as living when it was seen within this time."""


@dataclass(frozen=True)
class Me:
    """Who this worker is and what it can take."""

    id: str
    host: str
    here: Here
    capacity: Capacity


def myself(settings: Settings) -> Me:
    """A new identity for this process.

    Raises:
        ValueError: The settings name a profile that is none.
    """
    return Me(new_id("worker-"), settings.hostname, process.here(settings.boot_id_file), capacity.of(settings))


async def register(db: AsyncSession, me: Me) -> None:
    """Make this worker known."""
    pid = os.getpid()
    capabilities = me.capacity.as_json() | {"pid_started": started_at(pid)}
    row = Worker(
        id=me.id, host=me.host, pid=pid, boot_id=me.here.boot_id, pid_namespace=me.here.pid_namespace,
        capabilities=capabilities,
    )  # fmt: skip
    db.add(row)
    await db.flush()


async def beat(db: AsyncSession, me: Me) -> datetime:
    """Say that this worker lives; the database's time."""
    now = func.clock_timestamp()
    mine = update(Worker).where(Worker.id == me.id).values(heartbeat_at=now)
    await db.execute(mine)
    at: datetime = (await db.execute(select(now))).scalar_one()
    return at


async def others_live(db: AsyncSession, me: Me) -> bool:
    """Whether a worker of another machine or PID namespace was seen lately: it could take our jobs over."""
    since = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, OTHERS_SECONDS)
    elsewhere = or_(Worker.host != me.host, Worker.pid_namespace != me.here.pid_namespace)
    found = select(Worker.id).where(elsewhere, Worker.heartbeat_at > since).limit(1)
    return (await db.execute(found)).first() is not None


async def dead_neighbours(db: AsyncSession, me: Me) -> list[str]:
    """Holders of jobs, of this machine, boot and PID namespace, that are certainly dead: their leases need not run out first."""
    rows = await db.execute(
        select(Worker).where(
            Worker.id != me.id,
            Worker.boot_id == me.here.boot_id,
            Worker.pid_namespace == me.here.pid_namespace,
            Worker.id.in_(select(Job.worker_id).where(Job.worker_id.is_not(None))),
        )
    )
    return [row.id for row in rows.scalars() if started_at(row.pid) != row.capabilities.get("pid_started")]
