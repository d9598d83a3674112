"""Live streams whose connections are cut, whose database is cut, whose readers are many or slow: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest
import pytest_asyncio
from sqlalchemy import Engine, event, text

from app import protocol
from app.auth import key_hash
from app.events import service as events
from app.jobs import lifecycle
from app.models import ApiKey
from benchmarks.streams import Followers, Order, path_of, tell
from tests.app.conftest import serving
from tests.app.events.sse import numbers, parsed
from tests.app.worker.services import World, until
from tests.fault.cable import cabled

pytestmark = pytest.mark.fault

KEY = "lf-streams"
FAILED = {"code": "internal_error", "message": "It was to end.", "param": None}


@dataclass
class Story:
    """A job that is told of, and the API that streams it."""

    world: World
    port: int
    job_id: str

    async def tell(self, *messages: str) -> None:
        """Events, each committed by itself."""
        for message in messages:
            async with self.world.database.transaction() as db:
                await events.record(db, await lifecycle.lock(db, self.job_id), message)

    async def end(self) -> None:
        """The terminal event."""
        async with self.world.database.transaction() as db:
            await lifecycle.failed(db, await lifecycle.lock(db, self.job_id), FAILED, fence=None)

    async def cut(self, application: str) -> list[int]:
        """End the service's connections to Postgres of that name, as an administrator would; their process ids."""
        query = text(
            "select pid, pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = :name and pid <> pg_backend_pid() and datname = current_database()"
        )
        async with self.world.database.transaction() as db:
            return [row.pid for row in await db.execute(query, {"name": application})]


@dataclass
class Subscriber:
    """A client of the stream by hand: takes bytes when it is told to, and resumes behind the last whole event."""

    story: Story
    port: int
    received: bytes = b""

    def ask(self, *, window: int = 1 << 20) -> socket.socket:
        """The connection, behind the head of the answer. window: how much the kernel takes for a reader that sleeps."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        try:
            self._ask(made)
        except BaseException:
            made.close()
            raise
        return made

    def _ask(self, made: socket.socket) -> None:
        made.settimeout(30)
        made.connect(("127.0.0.1", self.port))
        request = [
            f"GET {path_of(self.story.job_id)} HTTP/1.1", "host: x", f"authorization: Bearer {KEY}",
            "accept: text/event-stream", f"last-event-id: {max(self.numbers, default=0)}", "connection: close", "", "",
        ]  # fmt: skip
        made.sendall("\r\n".join(request).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := made.recv(1)):
                raise ConnectionError
            head += byte

    def take(self, connection: socket.socket) -> None:
        """Read until the connection ends, and forget what came of an event whose end did not come, as every client does."""
        with connection, suppress(OSError):
            while part := connection.recv(1 << 16):
                self.received += part
        self.received = self.received[: self.received.rfind(b"\n\n") + 2] if b"\n\n" in self.received else b""

    def follow(self) -> None:
        """Read to the end, as often as the connection breaks."""
        while b"[DONE]" not in self.received:
            with suppress(OSError):
                self.take(self.ask())

    @property
    def numbers(self) -> list[int]:
        """Of the events that came; lines that end in CR are HTTP's own."""
        return numbers(parsed(line for line in self.received.decode().split("\n") if not line.endswith("\r")))


@pytest_asyncio.fixture
async def story(world: World) -> AsyncIterator[Story]:
    project = await world.project()
    async with world.database.transaction() as db:
        db.add(ApiKey(id="key_streams", project_id=project, hash=key_hash(KEY), scopes=["read"]))
    job_id = await world.job(project)
    with serving(world.settings) as url:
        yield Story(world, int(url.rpartition(":")[2]), job_id)


async def test_a_stream_that_is_cut_again_and_again_loses_nothing_and_doubles_nothing(story: Story) -> None:
    with cabled(story.port) as cable:
        subscriber = Subscriber(story, cable.port)
        following = asyncio.create_task(asyncio.to_thread(subscriber.follow))
        for n in range(100):
            await story.tell(f"Step {n}/100: training loss 0.5")
            if n % 9 == 0:
                cable.cut()
        await story.end()
        await asyncio.wait_for(following, 60)
    assert subscriber.numbers == list(range(1, 104))
    assert cable.cuts > 3


async def test_nothing_is_lost_when_the_services_connections_to_postgres_are_cut(story: Story) -> None:
    subscriber = Subscriber(story, story.port)
    following = asyncio.create_task(asyncio.to_thread(subscriber.follow))

    async def listening() -> list[int]:
        query = text("select pid from pg_stat_activity where application_name = 'llamaflow-listen'")
        async with story.world.database.transaction() as db:
            return list((await db.execute(query)).scalars())

    cut: set[int] = set()
    for n in range(4):
        await until(listening)
        await story.tell(f"Before cut {n}")
        cut |= set(await story.cut("llamaflow-listen"))
        await story.cut("llamaflow")  # the pool's, the test's own other ones too
        await story.tell(f"After cut {n}")
    await until(listening)
    assert len(cut) == 4
    assert cut.isdisjoint(await listening())
    await story.end()
    await asyncio.wait_for(following, 60)
    assert subscriber.numbers == list(range(1, 12))


async def test_two_hundred_subscribers_cost_one_reading_of_the_job_at_a_time(story: Story) -> None:
    readings: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if "FROM events" in statement:
            readings.append(statement)

    try:
        followers = await asyncio.to_thread(Followers, Order(story.port, KEY, [path_of(story.job_id)], 200, history=2))
        before = len(readings)
        commits = await tell(story.world.database, [story.job_id], rounds=10, every=0.05)
        answer = await asyncio.to_thread(followers.finish, commits)
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    assert (answer.events, answer.lost, answer.doubled) == (2000, 0, 0)
    assert before <= 5
    assert len(readings) - before <= 15


async def test_who_does_not_read_delays_nobody_and_may_resume(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "TAKE_SECONDS", 1.0)
    slow, quick = Subscriber(story, story.port), Subscriber(story, story.port)
    stuck = await asyncio.to_thread(slow.ask, window=4096)
    following = asyncio.create_task(asyncio.to_thread(quick.follow))
    await story.tell(
        *(f"{n} " + "x" * 200_000 for n in range(40))
    )  # more than the kernel takes for a reader that sleeps
    await story.end()
    await asyncio.wait_for(following, 60)
    assert quick.numbers == list(range(1, 44))
    await asyncio.sleep(2)
    await asyncio.to_thread(slow.take, stuck)
    assert b"[DONE]" not in slow.received, "it was to be cut, for it took nothing"
    await asyncio.wait_for(asyncio.to_thread(slow.follow), 60)
    assert slow.numbers == list(range(1, 44))


@pytest.mark.slow
async def test_readers_that_sleep_cost_no_memory(story: Story) -> None:
    sleeping = [Subscriber(story, story.port) for _ in range(10)]
    streams = [await asyncio.to_thread(each.ask, window=4096) for each in sleeping]
    await story.tell("x" * 200_000)
    before = psutil.Process().memory_info().rss
    await story.tell(*("x" * 200_000 for _ in range(200)))  # 40 MB for each of them
    grown = psutil.Process().memory_info().rss - before
    for each in streams:
        each.close()
    assert grown < 150 << 20


@pytest.mark.slow
async def test_a_thousand_subscribers_get_everything_once(story: Story) -> None:
    followers = await asyncio.to_thread(Followers, Order(story.port, KEY, [path_of(story.job_id)], 1000, history=2))
    commits = await tell(story.world.database, [story.job_id], rounds=20, every=0.5)
    answer = await asyncio.to_thread(followers.finish, commits)
    print(json.dumps(vars(answer)))
    assert (answer.events, answer.lost, answer.doubled) == (20_000, 0, 0)
