"""A worker's part in keeping house: a sweep now and then, for ever. The duties are app/housekeeping's."""

from __future__ import annotations

import asyncio

import structlog

from app.db import is_outage
from app.housekeeping.sweep import sweep
from app.worker.context import Context

log = structlog.get_logger("worker.housekeeping")


async def keep_house(context: Context) -> None:
    """Sweep now and then, for ever; what cannot be done now is left to the next time."""
    while True:
        try:
            for line in await sweep(context.settings, context.database):
                log.info("swept", what=line)
        except Exception as problem:
            if not is_outage(problem):
                raise
            log.warning("not_swept", error=str(problem)[:200])
        await asyncio.sleep(context.settings.housekeeping_seconds)
