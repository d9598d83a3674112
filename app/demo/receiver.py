"""A receiver of callbacks, as a user would write one: the official client verifies the signature over the raw body."""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai import InvalidWebhookSignatureError, OpenAI


class Receiver:
    """Listens on a free loopback port until closed; verified events arrive in `events`.

    Args:
        secret: The project's `whsec_…`; set it before the first callback comes.
    """

    def __init__(self, secret: str = "") -> None:
        self.secret = secret
        self.events: queue.Queue[Any] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """host:port, as LLAMAFLOW_WEBHOOK_ALLOW takes it."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """Where callbacks go."""
        return f"http://{self.address}/callback"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _verify(self, body: bytes, headers: dict[str, str]) -> None:
        client = OpenAI(api_key="unused", webhook_secret=self.secret)
        self.events.put(client.webhooks.unwrap(body, headers))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            """One callback."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                try:
                    receiver._verify(body, dict(self.headers.items()))
                    self.send_response(204)
                except (InvalidWebhookSignatureError, ValueError):
                    self.send_response(400)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Silent: the demonstration prints what matters."""

        return Handler
