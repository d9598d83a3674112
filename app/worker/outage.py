"""What a worker does while the database is away: it waits and asks again. What it holds goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog

from app.db import is_outage

T = TypeVar("T")
NEVER = datetime(1970, 1, 1, tzinfo=UTC)
log = structlog.get_logger("worker")


async def insist(work: Callable[[], Awaitable[T]]) -> T:
    """Do `work` until the database answers.

    Args:
        work: A whole transaction that may run again: a lost connection does not tell whether it was committed.
    """
    delay = 0.1
    while True:
        try:
            return await work()
        except Exception as problem:
            if not is_outage(problem):
                raise
            log.warning("database_away", error=str(problem).splitlines()[0][:200])
            await asyncio.sleep(delay)
            delay = min(2.0, delay * 2)


class Recovery:
    """Remembers since when the database answers this worker, so that nobody's lease is taken that could not be renewed.

    All times are the database's. A silence of a whole lease counts as an outage even if nothing failed: a database that
    stood still answers late, and to the others it was away as well.

    Args:
        lease: Seconds that everybody else is given after an outage.
    """

    def __init__(self, lease: float) -> None:
        self._lease = timedelta(seconds=lease)
        self._since: datetime | None = None
        self._last: datetime | None = None

    def failed(self) -> None:
        """A query found the database away."""
        self._since = self._last = None

    def answered(self, at: datetime) -> None:
        """A heartbeat was written at this time."""
        if self._since is None or self._last is None or at - self._last > self._lease:
            self._since = at
        self._last = at

    @property
    def until(self) -> datetime:
        """Until when expired leases may be taken over; a time long past if not now.

        A claim that the database carries out later than this takes nobody's lease: it stood still since the last heartbeat.
        """
        if self._since is None or self._last is None or self._last - self._since < self._lease:
            return NEVER
        return self._last + self._lease
