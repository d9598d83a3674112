"""A worker's part in loops: a look now and then, for ever. What a round is, is app/loops'."""

from __future__ import annotations

import asyncio

import structlog

from app.db import is_outage
from app.files.storage import Storage
from app.loops import rounds
from app.worker.context import Context

log = structlog.get_logger("worker.loops")


async def go_round(context: Context) -> None:
    """Look at the loops now and then, for ever; what cannot be done now is left to the next time."""
    storage = Storage(context.settings)
    try:
        while True:
            try:
                await rounds.look(context.settings, context.database, storage)
            except Exception as problem:
                if not is_outage(problem):
                    raise
                log.warning("not_looked", error=str(problem)[:200])
            await asyncio.sleep(context.settings.loop_seconds)
    finally:
        storage.close()
