"""Live streams under load: from the commit of an event to each of many clients.

`python -m benchmarks.streams ORDER` is the clients, a process of its own: connections written by hand, so that they cost little
beside what they measure. It says `ready` once each has the history, is told when each event was committed, and prints what it
saw. `measure` drives it against an API of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop
from sqlalchemy import select

from app.db import Database
from app.events import service as events
from app.jobs import lifecycle
from app.models import ApiKey, Job, new_id
from benchmarks.load import percentile
from benchmarks.place import KEY, MODEL, Place

NUMBER = re.compile(rb"id: (\d+)\n")
OPENING = 50
"""Connections opened at once."""
PATIENCE = 60.0


@dataclass(frozen=True)
class Order:
    """Streams to open: `streams` of them, spread over `paths`, each of which has `history` events already."""

    port: int
    key: str
    paths: list[str]
    streams: int
    history: int


@dataclass(frozen=True)
class Answer:
    """What came: milliseconds from commit to client; `lost` and `doubled` are events."""

    events: int
    lost: int
    doubled: int
    p50_ms: float
    p99_ms: float
    worst_ms: float


class Reader(asyncio.Protocol):
    """One stream; notes when each event came."""

    def __init__(self, request: bytes) -> None:
        self.came: list[tuple[int, float]] = []
        self.last = 0
        self._request, self._rest = request, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the numbers of the events that are whole."""
        now = time.monotonic()
        whole, end, self._rest = (self._rest + data).rpartition(b"\n\n")
        for found in NUMBER.finditer(whole + end):
            self.last = int(found[1])
            self.came.append((self.last, now))


async def follow(order: Order) -> Answer:
    """Open the streams, wait for word of the commits, and compare."""
    loop = asyncio.get_running_loop()
    readers: list[tuple[str, Reader]] = []
    for start in range(0, order.streams, OPENING):
        paths = [order.paths[n % len(order.paths)] for n in range(start, min(start + OPENING, order.streams))]
        made = [Reader(_request(order, path)) for path in paths]
        for reader in made:
            await loop.create_connection(lambda reader=reader: reader, "127.0.0.1", order.port)
        await _until(lambda made=made: all(reader.last >= order.history for reader in made))
        readers += zip(paths, made, strict=True)
    print("ready", flush=True)
    commits: dict[str, dict[str, float]] = json.loads(await asyncio.to_thread(sys.stdin.readline))
    last = {path: max(map(int, told), default=order.history) for path, told in commits.items()}
    await _until(lambda: all(reader.last >= last[path] for path, reader in readers))
    return _compare(order, readers, commits, last)


def _compare(
    order: Order, readers: list[tuple[str, Reader]], commits: dict[str, dict[str, float]], last: dict[str, int]
) -> Answer:
    times, lost, doubled = [], 0, 0
    for path, reader in readers:
        numbers = [number for number, _ in reader.came]
        lost += len(set(range(1, last[path] + 1)) - set(numbers))
        doubled += len(numbers) - len(set(numbers))
        told = commits[path]
        times += [at - told[str(number)] for number, at in reader.came if str(number) in told]
    times.sort()
    in_ms = [round(value * 1000, 1) for value in (percentile(times, 50), percentile(times, 99), times[-1])]
    return Answer(len(times), lost, doubled, *in_ms)


def _request(order: Order, path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {order.key}\r\n"
        "accept: text/event-stream\r\n\r\n"
    ).encode()


async def _until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  what is waited for comes to a protocol
        await asyncio.sleep(0.02)


class Followers:
    """The clients in a process of their own, each with the history, until `finish`."""

    def __init__(self, order: Order) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.streams", json.dumps(asdict(order))],
            cwd=Path(__file__).resolve().parent.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the streams could not be opened"

    def finish(self, commits: dict[str, dict[int, float]]) -> Answer:
        """What they saw. commits: of each path when each event was committed, by the machine's monotonic clock."""
        said, _ = self._process.communicate(json.dumps(commits) + "\n", timeout=2 * PATIENCE)
        return Answer(**json.loads(said))


def path_of(job_id: str) -> str:
    """Where a job's events are."""
    return f"/v1/fine_tuning/jobs/{job_id}/events"


async def tell(database: Database, job_ids: list[str], rounds: int, every: float) -> dict[str, dict[int, float]]:
    """In each round one event of each job; when each was committed."""
    commits: dict[str, dict[int, float]] = {path_of(job_id): {} for job_id in job_ids}
    for number in range(rounds):
        began = time.monotonic()
        for job_id in job_ids:
            async with database.transaction() as db:
                job = await lifecycle.lock(db, job_id)
                event = await events.record(db, job, f"Step {number}/{rounds}: training loss 0.83", type="metrics")
            commits[path_of(job_id)][event.seq] = time.monotonic()
        await asyncio.sleep(max(0.0, began + every - time.monotonic()))
    return commits


async def jobs(database: Database, count: int) -> list[str]:
    """So many jobs with two events each, which no worker takes."""
    async with database.transaction() as db:
        key = (await db.execute(select(ApiKey))).scalars().first()
        assert key is not None
        made = [
            Job(
                id=new_id("ftjob-"), project_id=key.project_id, api_key_id=key.id, spec={}, model=MODEL, base={},
                training_file="s3://x/y", seed=1, request_hash="",
            )
            for _ in range(count)
        ]  # fmt: skip
        for job in made:
            await lifecycle.created(db, job)
        return [job.id for job in made]


def measure(here: Place, *, streams: int = 1000, rounds: int = 30, every: float = 1.0) -> dict[str, Any]:
    """So many streams on one job, and on a tenth as many jobs; each job tells something once in `every` seconds."""
    found: dict[str, Any] = {}
    for name, count in (("on one job", 1), (f"on {streams // 10} jobs", streams // 10)):
        with here.serving() as api:
            server = psutil.Process(api.part.process.pid)
            made = asyncio.run(_drive(here, api.port, server, streams, count, rounds, every))
            found[f"{streams} streams {name}"] = made
    return found


async def _drive(
    here: Place, port: int, server: psutil.Process, streams: int, count: int, rounds: int, every: float
) -> dict[str, Any]:
    database = here.database()
    ids = await jobs(database, count)
    empty = server.memory_info().rss
    followers = await asyncio.to_thread(
        Followers, Order(port, KEY, [path_of(name) for name in ids], streams, history=2)
    )
    began = server.cpu_times()
    commits = await tell(database, ids, rounds, every)
    ended, full = server.cpu_times(), server.memory_info().rss
    await database.close()
    answer = await asyncio.to_thread(followers.finish, commits)
    spent = ended.user + ended.system - began.user - began.system
    return asdict(answer) | {
        "cpu_us_an_event": round(spent * 1e6 / answer.events), "kib_a_stream": round((full - empty) / 1024 / streams),
    }  # fmt: skip


def main() -> None:
    """Run the order given as the one argument."""
    print(json.dumps(asdict(uvloop.run(follow(Order(**json.loads(sys.argv[1])))))))


if __name__ == "__main__":
    main()
