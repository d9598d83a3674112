"""A receiver of callbacks that misbehaves as told: an HTTP server on a free port, in a thread."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """One request: its headers with lower-case names, and its body."""

    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Answers each request by the next of `answers`, the last one for ever.

    Attributes:
        answers: A status; a (status, headers, body); or "hang", "close", "flood".
        received: What came, in order.
    """

    answers: list[Any] = field(default_factory=lambda: [200])
    received: list[Received] = field(default_factory=list)
    port: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def allow(self) -> list[str]:
        """What `webhook_allow` needs for it."""
        return [f"127.0.0.1:{self.port}"]

    def next(self) -> Any:
        """How to answer now."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def receiving(*answers: Any, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Receiver]:
    """A receiver, until the block ends; tls: it speaks https; port: not a free one, but this."""
    receiver = Receiver(list(answers) or [200])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(headers, self.rfile.read(length)))
            answer(self, receiver, receiver.next())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def answer(handler: BaseHTTPRequestHandler, receiver: Receiver, how: Any) -> None:
    """Answer one request."""
    if how == "hang":
        receiver.released.wait(30)
        return
    if how == "close":
        handler.connection.close()
        return
    if how == "flood":
        handler.send_response(200)
        handler.end_headers()
        _flood(handler)
        return
    status, headers, body = how if isinstance(how, tuple) else (how, {}, b"ok")
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    if "content-length" not in headers:
        handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def _flood(handler: BaseHTTPRequestHandler) -> None:
    """A gigabyte, unless the sender hangs up first."""
    try:
        for _ in range(1 << 14):
            handler.wfile.write(b"x" * (1 << 16))
    except OSError:
        return
