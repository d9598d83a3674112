"""A proxy before the real S3 server that misbehaves as told: it refuses, is slow, cuts connections, answers errors, has no space.

One request a connection: the request's head is read, the fault of its method decided, and the rest passed on as it comes. The
signature stays good, for the host that was signed is passed on too.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CHUNK = 1 << 16
LIMIT_SECONDS = 30.0

Fault = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request: both connections, and its head.

    Attributes:
        method: GET, PUT, …
        path: With the query.
    """

    client: socket.socket
    server: tuple[str, int]
    head: bytes
    body: bytes
    method: str
    path: str

    @property
    def length(self) -> int:
        """Bytes of the request's body."""
        for line in self.head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return int(line.partition(b":")[2])
        return 0


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        fault: What happens to a request; `good` passes it on.
        seen: Method and path of every request, with the name of what happened to it.
    """

    target: str
    fault: Fault
    port: int = 0
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def handle(self, client: socket.socket) -> None:
        """Serve one connection."""
        with contextlib.suppress(OSError), client:
            client.settimeout(LIMIT_SECONDS)
            head, body = _head(client)
            if not head:
                return
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
            parts = urlsplit(self.target)
            exchange = Exchange(client, (str(parts.hostname), int(parts.port or 80)), head, body, method, path)
            fault = self.fault
            self.seen.append((method, path, getattr(fault, "__name__", "fault")))
            self.first.set()
            fault(exchange)


def good(exchange: Exchange) -> None:
    """Pass everything on."""
    _pass(exchange)


def refusing(exchange: Exchange) -> None:
    """Cut the connection before an answer."""
    _reset(exchange.client)


def slow(exchange: Exchange) -> None:
    """Answer in drops."""
    _pass(exchange, pause=0.02, piece=256)


def cut_in_the_middle(exchange: Exchange) -> None:
    """Cut the connection in the middle: of the body that is sent, or of the head of the answer."""
    if exchange.method == "PUT" and exchange.length:
        _drain(exchange, exchange.length // 2)
    else:
        _pass(exchange, piece=100, most=100)
    _reset(exchange.client)


def answering(status: int, code: str) -> Fault:
    """Answer an error of S3 to everything."""

    def fault(exchange: Exchange) -> None:
        _drain(exchange, exchange.length)
        body = (
            b""
            if exchange.method == "HEAD"
            else f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        )
        lines = [f"HTTP/1.1 {status} {code}", "content-type: application/xml", f"content-length: {len(body)}"]
        exchange.client.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode() + body)

    fault.__name__ = f"answering_{status}"
    return fault


def of(method: str, fault: Fault) -> Fault:
    """`fault` for one method only, such as PUT where there is no space."""

    def chosen(exchange: Exchange) -> None:
        (fault if exchange.method == method else good)(exchange)

    chosen.__name__ = f"{method}_{getattr(fault, '__name__', 'fault')}"
    return chosen


def times(number: int, fault: Fault) -> Fault:
    """`fault` so often, then good."""
    left = [number]

    def chosen(exchange: Exchange) -> None:
        left[0] -= 1
        (fault if left[0] >= 0 else good)(exchange)

    chosen.__name__ = f"{number}_times_{getattr(fault, '__name__', 'fault')}"
    return chosen


@contextmanager
def proxied(target: str, fault: Fault = good) -> Iterator[Proxy]:
    """A proxy before the server at `target`, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(target, fault, listener.getsockname()[1])
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=proxy.handle, args=[client], daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _head(client: socket.socket) -> tuple[bytes, bytes]:
    """A request's head, and what came of its body with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := client.recv(CHUNK)):
            return b"", b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def _drain(exchange: Exchange, length: int) -> None:
    """Read so much of the request's body; a client that waits to be asked for it is asked."""
    if b"100-continue" in exchange.head.lower():
        exchange.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    got = len(exchange.body)
    while got < length and (piece := exchange.client.recv(CHUNK)):
        got += len(piece)


def _pass(exchange: Exchange, *, pause: float = 0.0, piece: int = CHUNK, most: int | None = None) -> None:
    """Send the request on and its answer back, perhaps in small pieces, perhaps not all of it."""
    with socket.create_connection(exchange.server, timeout=LIMIT_SECONDS) as server:
        lines = [line for line in exchange.head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + exchange.body)
        threading.Thread(target=_send_rest, args=[exchange, server], daemon=True).start()
        sent = 0
        while (most is None or sent < most) and (data := server.recv(piece)):
            exchange.client.sendall(data)
            sent += len(data)
            time.sleep(pause)


def _send_rest(exchange: Exchange, server: socket.socket) -> None:
    """The rest of the body, and the end of it: some servers else wait for more before they close."""
    left = exchange.length - len(exchange.body)
    with contextlib.suppress(OSError):
        while left > 0 and (data := exchange.client.recv(min(CHUNK, left))):
            server.sendall(data)
            left -= len(data)
        server.shutdown(socket.SHUT_WR)


def _reset(client: socket.socket) -> None:
    """Close so that the other side sees a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
