"""The hands of one worker: claims jobs into free slots, renews their leases, lets go of them when the worker goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from app.db import is_outage
from app.jobs import lifecycle
from app.jobs.lifecycle import FenceLost
from app.models import FINAL
from app.worker import deaths, presence, run, settle, validate
from app.worker import folder as folders
from app.worker.claim import Claim, Claimant, claim_run, claim_validation, release, renew
from app.worker.context import Context, Hand
from app.worker.outage import Recovery, insist

VALIDATIONS = 4
"""Datasets checked at once; a check needs little but S3."""

GOING_SECONDS = 3.0
STUMBLE_SECONDS = 1.0
STUMBLED = "The worker stopped on an error of its own and tries again."

log = structlog.get_logger("worker")


@dataclass
class Held:
    """A hand, its task, and whether it takes a slot."""

    hand: Hand
    task: asyncio.Task[None]
    slot: bool


class Pool:
    """What a worker holds.

    Args:
        context: The worker's.
    Attributes:
        can_run: Whether runs may be claimed: Nextflow is installed.
        wake: Set when there may be something to claim.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._held: dict[str, Held] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # also of hands whose job a later hand of ours holds by now
        self._recovery = Recovery(context.settings.lease_seconds)
        self._confirming: asyncio.Task[None] | None = None
        self._closing = False
        self.can_run = False
        self.wake = asyncio.Event()

    def notice(self, job_id: str) -> None:
        """Something was said about a job: look at it, and for more of its kind."""
        self.wake.set()
        if job_id in self._held:
            self._held[job_id].hand.wake.set()

    async def claim_for_ever(self) -> None:
        """Claim whatever there is, then wait for a NOTIFY or the poll."""
        while True:
            self.wake.clear()
            try:
                while not self._closing and await self._claim_one():
                    pass
            except Exception as problem:
                if not is_outage(problem):
                    raise
                self._recovery.failed()
            try:
                async with asyncio.timeout(self._context.settings.poll_seconds):
                    await self.wake.wait()
            except TimeoutError:
                continue

    async def beat_for_ever(self) -> None:
        """Say that the worker lives, and renew its leases; a hand whose job is another's by now is stopped at once."""
        while True:
            try:
                await self.beat()
            except Exception as problem:
                if not is_outage(problem):
                    raise
                self._recovery.failed()
                log.warning("heartbeat_missed", error=str(problem).splitlines()[0][:200])
            await asyncio.sleep(self._context.settings.heartbeat_seconds)

    async def beat(self) -> None:
        """One heartbeat. Waits for the database alone: no disk, however full or slow, may cost a lease."""
        settings, me = self._context.settings, self._context.me
        asked = {job: held.hand.fence for job, held in self._held.items()}
        async with self._context.database.transaction() as db:
            at = await presence.beat(db, me)
            ours = await renew(db, me.id, settings.lease_seconds, asked.items()) if asked else set()
            others = await presence.others_live(db, me)
        self._recovery.answered(at)
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm(sorted(ours), others=others))
        for job, fence in asked.items():
            held = self._held.get(job)
            if job not in ours and held is not None and held.hand.fence == fence and await self._is_taken(job, fence):
                held.task.cancel()

    async def _confirm(self, jobs: list[str], *, others: bool) -> None:
        """Let the runs' shims know that their leases hold."""
        settings = self._context.settings
        end_after = max(settings.host_lost_after - 60.0, settings.lease_seconds)
        for job_id in jobs:
            try:
                folder = folders.of(settings, job_id)
                await asyncio.to_thread(folders.confirm_lease, folder, others=others, end_after=end_after)
            except OSError as problem:
                log.warning("lease_not_confirmed", job=job_id, error=str(problem))

    async def close(self, *, halt: bool, patience: float) -> None:
        """Let go of everything.

        Args:
            halt: End the runs at a checkpoint, instead of leaving them to the next worker.
            patience: Seconds to wait for it.
        """
        self._closing = True
        for one in self._held.values():
            one.hand.halt, one.hand.leave = halt, not halt
            one.hand.wake.set()
            if not one.slot:
                one.task.cancel()
        if tasks := list(self._tasks):
            await asyncio.wait(tasks, timeout=patience)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _claim_one(self) -> bool:
        """Claim one job, if there is a place and a job for it."""
        running = sum(held.slot for held in self._held.values())
        checking = len(self._held) - running
        wants = [
            (claim_validation, False, checking < VALIDATIONS),
            (claim_run, True, self.can_run and running < self._context.me.capacity.slots),
        ]
        for claim, slot, place in wants:
            if not place:
                continue
            async with self._context.database.transaction() as db:
                dead = await presence.dead_neighbours(db, self._context.me)
                taken = await claim(db, self._claimant(dead))
            if taken is not None:
                self._hold(taken, slot=slot)
                return True
        return False

    def _claimant(self, dead: list[str]) -> Claimant:
        settings, me = self._context.settings, self._context.me
        held = sum(one.hand.claim.memory for one in self._held.values() if one.slot)
        memory = me.capacity.memory
        return Claimant(
            worker=me.id, lease=settings.lease_seconds, host=me.host, boot_id=me.here.boot_id,
            pid_namespace=me.here.pid_namespace, profiles=me.capacity.profiles, host_lost_after=settings.host_lost_after,
            memory=None if memory is None else memory - held, runs=me.capacity.runs, dead=dead,
            held=list(self._held),
            take_over_until=self._recovery.until,
        )  # fmt: skip

    def _hold(self, claim: Claim, *, slot: bool) -> None:
        hand = Hand(claim)
        context = self._context
        work = run.carry(context, hand) if slot else validate.validate(context.database, context.settings, claim)
        log.info("claimed", job=claim.job_id, fence=claim.fence, run=slot, previous=claim.previous)
        task = asyncio.create_task(self._guard(hand, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._held[claim.job_id] = Held(hand, task, slot)

    async def _guard(self, hand: Hand, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; whatever comes of it, the job is not left in a dead hand."""
        try:
            await work
        except FenceLost as lost:
            log.warning("fence_lost", job=hand.job_id, why=str(lost))
        except asyncio.CancelledError:
            if not self._closing:
                log.warning("lease_lost", job=hand.job_id)
        except Exception:  # a mistake of ours in one job must not end the others
            log.exception("stumbled", job=hand.job_id)
            await self._stumbled(hand)
        finally:
            with contextlib.suppress(TimeoutError):  # a database that is away while the worker goes: the lease runs out
                async with asyncio.timeout(GOING_SECONDS if self._closing else None):
                    await insist(lambda: self._let_go(hand))
            if (last := self._held.get(hand.job_id)) is not None and last.hand is hand:
                del self._held[hand.job_id]  # a checked job may be held for its run while the check's hand lets go
            self.wake.set()

    async def _stumbled(self, hand: Hand) -> None:
        """Wait a moment, and fail the job when it was the third time with nothing done between: but never one to be cancelled."""

        async def once() -> None:
            async with self._context.database.transaction() as db:
                job = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
                if job.status in FINAL or job.cancel_requested_at is not None:
                    return
                if await deaths.record(db, job, STUMBLED):
                    await settle.forget_keys(self._context, hand)
                    await lifecycle.failed(db, job, deaths.crash_loop(), fence=hand.fence)

        await asyncio.sleep(STUMBLE_SECONDS)
        try:
            await insist(once)
        except FenceLost:
            log.warning("fence_lost", job=hand.job_id)

    async def _let_go(self, hand: Hand) -> None:
        async with self._context.database.transaction() as db:
            await release(db, hand.claim, self._context.me.id)

    async def _is_taken(self, job_id: str, fence: int) -> bool:
        """Whether a job that was not renewed is another's now; a settled one is nobody's and its hand ends by itself."""
        async with self._context.database.transaction() as db:
            try:
                await lifecycle.lock(db, job_id, fence=fence)
            except FenceLost:
                return True
            return False
