"""Who follows which job, and what is new of it: one listening connection and one reading a job, however many follow it.

A NOTIFY shortens the wait; reading by number is the truth, every poll_seconds, so a cut connection costs time and no event.
Of each job only the newest events are kept, as the bytes that all its streams send: who is slower reads the rest from the
database. Nothing is asked of the database while nobody follows, and no connection of the pool is held between two readings.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog
from sqlalchemy import select

from app.db import Database
from app.events import service
from app.events.schemas import Event
from app.listen import listen
from app.models import FINAL, ApiKey
from app.models import Event as Row
from app.settings import Settings

CHANNEL = "llamaflow_events"
RECENT = 64
"""Events of a job kept in memory, and rows of its history read at once."""
JOBS_AT_ONCE = 50
AT_ONCE = 50
"""Followers woken together: what these send goes out, and others are served, before the next ones look."""
READERS = 4
"""Streams that read older events at once; others of the service need connections too."""
KEYS_SECONDS = 20.0

log = structlog.get_logger("events")


@dataclass(frozen=True)
class Told:
    """Events as a stream sends them. seq: the last one's number in the job's history."""

    seq: int
    frame: bytes


class Channel:
    """One job that somebody follows.

    Args:
        heartbeat: Seconds without news after which everybody who waits is woken all the same.

    Attributes:
        last: Number of the newest event that was read; -1 before the first reading.
        ended: The job is final, and `last` is its last event.
    """

    def __init__(self, heartbeat: float) -> None:
        self.last = -1
        self.ended = False
        self._recent: deque[Told] = deque(maxlen=RECENT)
        self._joined: dict[int, Told] = {}
        self._waiting: list[asyncio.Future[bool]] = []
        self._waking: deque[asyncio.Future[bool]] = deque()
        self._silent = False
        self._loop, self._heartbeat = asyncio.get_running_loop(), heartbeat
        self._beat = self._loop.call_later(heartbeat, self.wake, True)

    def after(self, seq: int) -> Told | None:
        """What is newer than `seq`, with an empty frame if nothing is; None if that is not kept here."""
        if self.last <= seq:
            return Told(seq, b"")
        if seq not in self._joined:  # a thousand streams that have seen the same are sent the same
            if not self._recent or not self._recent[0].seq - 1 <= seq < self._recent[-1].seq:
                return None
            self._joined[seq] = joined(self.recent()[seq + 1 - self._recent[0].seq :])
        return self._joined[seq]

    def recent(self) -> list[Told]:
        """All that is kept."""
        return list(self._recent)

    def tell(self, told: list[Told], *, last: int, ended: bool) -> None:
        """Take in what was read; a gap before it leaves only what is behind the gap."""
        if (last, ended) == (self.last, self.ended):
            return
        if told and told[0].seq != self.last + 1:
            self._recent.clear()
        self._recent.extend(told)
        self._joined.clear()
        self.last, self.ended = last, ended
        self.wake()

    def news(self) -> asyncio.Future[bool]:
        """True once there is something to look at; False for a heartbeat. To be asked for before looking, or at once after it."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def wake(self, silent: bool = False) -> None:
        """Have everybody who waits look again, AT_ONCE at a time."""
        self._beat.cancel()
        self._beat = self._loop.call_later(self._heartbeat, self.wake, True)
        idle, self._silent = not self._waking, silent
        self._waking.extend(self._waiting)
        self._waiting.clear()
        if idle:
            self._wake_some()

    def _wake_some(self) -> None:
        for _ in range(min(AT_ONCE, len(self._waking))):
            waiter = self._waking.popleft()
            if not waiter.done():
                waiter.set_result(not self._silent)
        if self._waking:
            self._loop.call_soon(self._wake_some)

    def close(self) -> None:
        """Nobody follows it any more."""
        self._beat.cancel()


class Hub:
    """All channels of this process.

    Args:
        settings: Name the database to listen on.
        database: Where events are read.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._channels: dict[str, tuple[Channel, int]] = {}
        self._keys: Counter[str] = Counter()
        self._revoked: set[str] = set()
        self._due: set[str] = set()
        self._wake = asyncio.Event()
        self._poll_at = self._keys_at = 0.0
        self._readers = asyncio.Semaphore(READERS)
        self.stopped = False

    @contextmanager
    def following(self, job_id: str, key_id: str) -> Iterator[Channel]:
        """The job's channel while the block follows it on behalf of a key."""
        channel, followers = self._channels.get(job_id) or (Channel(self._settings.stream_heartbeat), 0)
        self._channels[job_id] = channel, followers + 1
        self._keys[key_id] += 1
        if not followers:
            self.notice(job_id)
        try:
            yield channel
        finally:
            followers = self._channels[job_id][1] - 1
            self._channels[job_id] = channel, followers
            self._keys[key_id] -= 1
            if not followers:
                del self._channels[job_id]
                channel.close()
            if not self._keys[key_id]:
                del self._keys[key_id]
                self._revoked.discard(key_id)

    def is_over(self, key_id: str) -> bool:
        """Whether streams of this key have to end: the service stops, or the key was revoked."""
        return self.stopped or key_id in self._revoked

    def stop(self) -> None:
        """Have every stream end."""
        self.stopped = True
        self._wake_all()

    def notice(self, job_id: str) -> None:
        """There may be news of a job; of every job with ""."""
        if job_id in self._channels:
            self._due.add(job_id)
            self._wake.set()
        elif not job_id:
            self._poll_at = 0.0
            self._wake.set()

    async def older(self, job_id: str, seq: int) -> list[Told]:
        """A page of the events behind `seq`, from the database."""
        async with self._readers, self._database.transaction() as db:
            return _told(await service.behind(db, job_id, seq, limit=RECENT))

    async def run(self) -> None:
        """Read what is new, for ever."""
        while True:
            while not self._channels:
                self._wake.clear()
                await self._wake.wait()
            listening = asyncio.create_task(listen(self._settings, {CHANNEL: self.notice}))
            try:
                while self._channels:
                    await self._round(await self._next())
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _next(self) -> list[str]:
        """The jobs to look at, once there are some: those with a notice, and every poll_seconds all."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._poll_at - loop.time())):
                await self._wake.wait()
        self._wake.clear()
        due, self._due = self._due & self._channels.keys(), set()
        if loop.time() < self._poll_at:
            return list(due)
        self._poll_at = loop.time() + self._settings.poll_seconds
        return [job_id for job_id, (channel, _) in self._channels.items() if not channel.ended]

    async def _round(self, due: list[str]) -> None:
        try:
            states = await self._states(due)
            behind = {job_id: last for job_id, (last, _) in states.items() if self._seen(job_id) < last}
            for start in range(0, len(behind), JOBS_AT_ONCE):
                await self._read(dict([*behind.items()][start : start + JOBS_AT_ONCE]), states)
            self._tell({job_id: [] for job_id in states if job_id not in behind}, states)
            await self._check_keys()
        except Exception as problem:  # noqa: BLE001  streams outlive a reading that fails, whatever the reason; it comes again
            log.warning("events_not_read", error=f"{type(problem).__name__}: {str(problem)[:200]}")
            await asyncio.sleep(self._settings.poll_seconds)

    async def _states(self, due: list[str]) -> dict[str, tuple[int, bool]]:
        """Of each job the number of its last event, and whether it is final."""
        if not due:
            return {}
        async with self._database.transaction() as db:
            return {job_id: (last, status in FINAL) for job_id, last, status in await service.last_of(db, due)}

    async def _read(self, behind: dict[str, int], states: dict[str, tuple[int, bool]]) -> None:
        async with self._database.transaction() as db:
            seen = {job_id: max(self._seen(job_id), last - RECENT) for job_id, last in behind.items()}
            rows = await service.newer(db, seen)
        found: dict[str, list[Row]] = {job_id: [] for job_id in behind}
        for row in rows:
            found[row.job_id].append(row)
        self._tell(found, states)

    def _tell(self, found: dict[str, list[Row]], states: dict[str, tuple[int, bool]]) -> None:
        for job_id, rows in found.items():
            if job_id in self._channels:
                last, ended = states[job_id]
                told = _told(rows)
                self._channels[job_id][0].tell(told, last=max(last, told[-1].seq if told else 0), ended=ended)

    def _seen(self, job_id: str) -> int:
        return self._channels[job_id][0].last if job_id in self._channels else -1

    async def _check_keys(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._keys_at or not self._keys:
            return
        self._keys_at = now + KEYS_SECONDS
        asked = list(self._keys)
        good = select(ApiKey.id).where(ApiKey.id.in_(asked), ApiKey.revoked_at.is_(None))
        async with self._database.transaction() as db:
            valid = set((await db.execute(good)).scalars())
        if lost := (set(asked) - valid) & self._keys.keys():
            self._revoked |= lost
            self._wake_all()

    def _wake_all(self) -> None:
        for channel, _ in self._channels.values():
            channel.wake()


def _told(rows: Iterable[Row]) -> list[Told]:
    return [Told(row.seq, frame(row)) for row in rows]


def joined(told: list[Told]) -> Told:
    """Several, at least one, as one."""
    return Told(told[-1].seq, b"".join(each.frame for each in told))


def frame(row: Row) -> bytes:
    """An event as server-sent events have it. Its JSON is ASCII: no reader's idea of a line's end can break it."""
    data = json.dumps(Event.of(row).model_dump(mode="json"), separators=(",", ":"))
    return f"id: {row.seq}\nevent: {row.type}\ndata: {data}\n\n".encode()
