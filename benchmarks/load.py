"""The load generator, a process of its own: keep-alive connections written by hand, so that it costs little beside what it measures.

`python -m benchmarks.load ORDER` reads one JSON order and prints one JSON answer. Without a rate each connection sends its
next request when the last was answered; with one, requests leave at fixed times and count from the time they were due.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import uvloop

MARK = "@NUMBER@"
"""Replaced by a running number, so that no two requests are the same."""


@dataclass(frozen=True)
class Order:
    """What to send.

    Attributes:
        body: JSON, with MARK where requests differ.
        connections: Kept open.
        seconds: How long, after `warm` seconds that do not count.
        rate: Requests a second; None for as many as are answered.
        first: Number of the first request.
    """

    port: int
    path: str
    key: str
    body: str
    connections: int
    seconds: float
    warm: float = 1.0
    rate: float | None = None
    first: int = 0


@dataclass(frozen=True)
class Answer:
    """What came back: statuses that are no 2xx are in `refused`, with one body of them. `cpu`: of the generator, a core."""

    answered: int
    refused: dict[str, int]
    example: str
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    cpu: float
    sent: int


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way."""

    def __init__(self) -> None:
        self._buffer = b""
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where to write."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("closed by the server"))

    def data_received(self, data: bytes) -> None:
        """Answer the waiter once an answer is whole."""
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or self._waiter is None:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) >= length:
            waiter, self._waiter, self._buffer = self._waiter, None, b""
            waiter.set_result((int(head[9:12]), rest))

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; its status and body."""
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter


class Load:
    """One order under way."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.number = order.first
        self.times: list[float] = []
        self.refused: dict[str, int] = {}
        self.example = ""
        self.from_ = self.until = 0.0
        head = (
            f"POST {order.path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {order.key}\r\n"
            "content-type: application/json\r\ncontent-length: "
        )
        self._head = head.encode()

    async def one(self, connection: Connection, due: float) -> None:
        """Send the next request and note what came of it."""
        self.number += 1
        body = self.order.body.replace(MARK, str(self.number)).encode()
        status, answer = await connection.send(self._head + str(len(body)).encode() + b"\r\n\r\n" + body)
        done = time.monotonic()
        if not self.from_ <= done <= self.until:
            return
        if 200 <= status < 300:
            self.times.append(done - due)
        else:
            self.refused[str(status)] = self.refused.get(str(status), 0) + 1
            self.example = answer[:300].decode(errors="replace")

    async def as_fast_as_answered(self, connection: Connection) -> None:
        """One connection's share, without a rate."""
        while (now := time.monotonic()) < self.until:
            await self.one(connection, now)

    async def steadily(self, connections: list[Connection], rate: float) -> None:
        """Requests at fixed times, each on a free connection; one that must wait for a connection has waited."""
        free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in connections:
            free.put_nowait(connection)
        begin, running = time.monotonic(), set()

        async def send(due: float) -> None:
            connection = await free.get()
            try:
                await self.one(connection, due)
            finally:
                free.put_nowait(connection)

        for number in range(int(rate * (self.until - begin))):
            due = begin + number / rate
            if (ahead := due - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            task = asyncio.create_task(send(due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def run(self) -> Answer:
        """Do it all."""
        loop = asyncio.get_running_loop()
        made = [
            await loop.create_connection(Connection, "127.0.0.1", self.order.port)
            for _ in range(self.order.connections)
        ]
        connections = [connection for _, connection in made]
        self.from_ = time.monotonic() + self.order.warm
        self.until = self.from_ + self.order.seconds
        began = time.process_time()
        if self.order.rate is None:
            await asyncio.gather(*(self.as_fast_as_answered(connection) for connection in connections))
        else:
            await self.steadily(connections, self.order.rate)
        cpu = (time.process_time() - began) / (self.order.seconds + self.order.warm)
        for transport, _ in made:
            transport.close()
        return self.answer(cpu)

    def answer(self, cpu: float) -> Answer:
        """What was noted."""
        times = sorted(self.times) or [float("nan")]
        return Answer(
            answered=len(self.times), refused=self.refused, example=self.example,
            rate=round(len(self.times) / self.order.seconds, 1), p50_ms=round(percentile(times, 50) * 1000, 2),
            p99_ms=round(percentile(times, 99) * 1000, 2), worst_ms=round(times[-1] * 1000, 2), cpu=round(cpu, 3),
            sent=self.number - self.order.first,
        )  # fmt: skip


def percentile(ordered: list[float], percent: float) -> float:
    """The value below which `percent` of the ordered ones lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def send(order: Order) -> Answer:
    """Run an order in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", json.dumps(asdict(order))],
        cwd=Path(__file__).resolve().parent.parent, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return Answer(**found)


def main() -> None:
    """Run the order given as the one argument."""
    order = Order(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(uvloop.run(Load(order).run()))))


if __name__ == "__main__":
    main()
