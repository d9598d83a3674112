"""What every part of a worker needs, and the hand: the worker's hold on one job."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from app.db import Database
from app.settings import Settings
from app.worker.claim import Claim
from app.worker.presence import Me


@dataclass(frozen=True)
class Context:
    """The worker's settings, its database and who it is."""

    settings: Settings
    database: Database
    me: Me


@dataclass
class Hand:
    """The worker's hold on one job.

    Attributes:
        claim: Which job, under which fence.
        wake: Set when there may be something to do before the next look.
        leave: The worker goes: let the run go on by itself.
        halt: The service goes: let the training save a checkpoint, and end the run.
        told: Whether a takeover was recorded.
    """

    claim: Claim
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    leave: bool = False
    halt: bool = False
    told: bool = False

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.claim.job_id

    @property
    def fence(self) -> int:
        """The fence under which every write is made."""
        return self.claim.fence

    async def rest(self, seconds: float) -> None:
        """Wait until woken, or so long."""
        try:
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        except TimeoutError:
            return
        self.wake.clear()
