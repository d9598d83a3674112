"""One sweep: every duty once, one process at a time, and what was done in plain lines.

A duty that cannot be done now (S3 away, a disk in trouble) says so and does not keep the others from being done.
"""

from __future__ import annotations

import asyncio

from app.db import Database, is_outage
from app.errors import ApiError
from app.housekeeping import cache, cancels, folders, objects, rows
from app.housekeeping.house import House
from app.settings import Settings
from finetune.exit_codes import StepError

LOCK = "llamaflow.housekeeping"
PATIENCE_SECONDS = 300.0
DUTIES = (
    cancels.finish,
    cancels.late_objects,
    folders.clear,
    objects.count_sweep,
    objects.orphans,
    objects.unfinished,
    rows.forget,
    cache.prune_shared,
)


async def sweep(settings: Settings, database: Database, *, dry_run: bool = False) -> list[str]:
    """Do every duty once.

    Args:
        dry_run: Only tell what would be done.
    Returns:
        A line for each thing done, or that could not be.
    """
    async with database.alone(LOCK, PATIENCE_SECONDS) as ours:
        if not ours:
            return ["Another sweep has been under way for minutes; nothing was done."]
        house, lines = House(settings, database, dry_run), []
        for duty in DUTIES:
            try:
                lines += await duty(house)
            except (StepError, ApiError, OSError) as problem:
                if is_outage(problem):
                    raise
                lines.append(f"{duty.__module__.rpartition('.')[2]}: not done now: {problem}")
        return lines


def main(settings: Settings, *, dry_run: bool) -> list[str]:
    """A sweep from the command line; its lines."""

    async def once() -> list[str]:
        database = Database.from_settings(settings, pool_size=2)
        try:
            return await sweep(settings, database, dry_run=dry_run)
        finally:
            await database.close()

    return asyncio.run(once())
