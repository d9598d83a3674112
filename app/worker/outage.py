"""What a worker does while the database is away: it waits and asks again. What it holds goes on meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from app.db import is_outage

T = TypeVar("T")
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
    """Remembers since when the database answers, so that nobody's lease is taken that could not be renewed.

    Args:
        lease: Seconds that everybody else is given after an outage.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._since: float | None = None

    def failed(self) -> None:
        """A query found the database away."""
        self._since = None

    def answered(self) -> None:
        """A query succeeded."""
        if self._since is None:
            self._since = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the database has answered for a whole lease time."""
        return self._since is not None and time.monotonic() - self._since >= self._lease
