"""A proxy that passes a request on, and loses the first answer 201 on its way back."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

HOP = {"connection", "transfer-encoding", "content-length", "content-encoding", "host", "date", "server"}


class LossyProxy:
    """Before the service at `target`.

    Attributes:
        lost: Answers that were lost.
        passed: Methods and paths that came.
    """

    def __init__(self, target: str) -> None:
        self.lost = 0
        self.passed: list[str] = []
        proxy = self
        self._client = client = httpx.Client(base_url=target, timeout=60, trust_env=False)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Silent."""

            def _pass(self) -> None:
                proxy.passed.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
                answer = client.request(self.command, self.path, content=body, headers=headers)
                if answer.status_code == 201 and not proxy.lost:
                    proxy.lost += 1
                    self.close_connection = True
                    return
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def do_GET(self) -> None:
                self._pass()

            def do_POST(self) -> None:
                self._pass()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Be gone."""
        self._server.shutdown()
        self._server.server_close()
        self._client.close()
