"""An engine of which the test decides what it sends, and when."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Peer:
    """An engine of which the test decides what it sends and when; one connection at a time."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def answer(self, *content: bytes, then: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        """Answer the next request with these bytes and hang up, in a thread; `then` is told the request's body."""

        def once() -> None:
            body, connection = self.accept()
            then(body)
            with connection:
                connection.sendall(b"".join(content))

        threading.Thread(target=once, daemon=True).start()

    def close(self) -> None:
        """Be gone."""
        self._listener.close()

    def accept(self) -> tuple[dict[str, Any], socket.socket]:
        """The next request's body, and the connection to answer it on."""
        connection, _ = self._listener.accept()
        connection.settimeout(20)
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += connection.recv(65536)
        head, _, body = seen.partition(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < size:
            body += connection.recv(65536)
        return json.loads(body), connection


def event(content: bytes) -> bytes:
    """One event as a chunk."""
    content = b"data: " + content + b"\n\n"
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def whole(status: int, body: dict[str, Any]) -> bytes:
    """An answer in one piece."""
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def streamed(chunks: Sequence[dict[str, Any]]) -> bytes:
    """An answer as a stream of these chunks, with its end."""
    return EVENTS + b"".join(event(json.dumps(chunk).encode()) for chunk in chunks) + event(b"[DONE]") + b"0\r\n\r\n"
