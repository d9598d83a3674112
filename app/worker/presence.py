"""This worker's row: where it is, that it lives, and what it knows of the others. Its heartbeat holds the leases."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import func

from app.models import Worker, new_id
from app.nextflow import process
from app.nextflow.process import Here
from app.nextflow.shim import started_at
from app.settings import PROJECT_ROOT, Settings

OTHERS_SECONDS = 60.0
"""Another host counts as living when one of its workers was seen within this time."""


@dataclass(frozen=True)
class Me:
    """Who this worker is."""

    id: str
    host: str
    here: Here


def myself(settings: Settings) -> Me:
    """A new identity for this process."""
    return Me(new_id("worker-"), settings.hostname, process.here(settings.boot_id_file))


def profiles() -> list[str]:
    """The profiles this worker offers: the files of pipeline/conf that are named after a place."""
    shared = {"exit_codes", "resources"}
    return sorted({path.stem for path in (PROJECT_ROOT / "pipeline" / "conf").glob("*.config")} - shared)


async def register(db: AsyncSession, me: Me, settings: Settings) -> None:
    """Make this worker known."""
    pid = os.getpid()
    capabilities = {"slots": settings.worker_slots, "profiles": profiles(), "pid_started": started_at(pid)}
    row = Worker(
        id=me.id, host=me.host, pid=pid, boot_id=me.here.boot_id, pid_namespace=me.here.pid_namespace,
        capabilities=capabilities,
    )  # fmt: skip
    db.add(row)
    await db.flush()


async def beat(db: AsyncSession, me: Me) -> None:
    """Say that this worker lives."""
    await db.execute(update(Worker).where(Worker.id == me.id).values(heartbeat_at=func.clock_timestamp()))


async def others_live(db: AsyncSession, me: Me) -> bool:
    """Whether a worker of another host was seen lately: it could take our jobs over."""
    since = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, OTHERS_SECONDS)
    found = select(Worker.id).where(Worker.host != me.host, Worker.heartbeat_at > since).limit(1)
    return (await db.execute(found)).first() is not None


async def dead_neighbours(db: AsyncSession, me: Me) -> list[str]:
    """Workers of this machine, boot and PID namespace that are certainly dead: their leases need not run out first."""
    rows = await db.execute(
        select(Worker).where(
            Worker.id != me.id,
            Worker.boot_id == me.here.boot_id,
            Worker.pid_namespace == me.here.pid_namespace,
        )
    )
    return [row.id for row in rows.scalars() if started_at(row.pid) != row.capabilities.get("pid_started")]
