"""What stands around n8n besides the service: a place for alerts, an API with answers, a database and a table on disk."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

ROWS = [
    ("What is  2+2?", '4 — "four" ✓', True),
    ("Where is my parcel?", "On its way.\nIt comes tomorrow.", True),
    ("A rude question", "A rude answer", False),
    ("No answer yet", None, True),
]
"""question, answer, approved: with two spaces, quotes, a line break; one that is not approved, one that is not complete."""


class Neighbours:
    """Listens on a free port until closed.

    Args:
        folder: For the table on disk.
        database_url: Of a Postgres whose role may make databases.

    Attributes:
        alerts: Texts that were posted to /hook.
        answers: What GET /answers.json says.
        postgres: Credentials of the database with the table `answers`.
    """

    def __init__(self, folder: Path, database_url: str) -> None:
        self.alerts: list[str] = []
        self.answers: list[dict[str, Any]] = []
        self.table = folder / "answers.csv"
        plain = database_url.replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(plain, autocommit=True) as db:
            db.execute("create database business")
        parts = urlsplit(plain)
        self._business = parts._replace(path="/business").geturl()
        with psycopg.connect(self._business) as db:
            db.execute("create table answers (id serial, question text, answer text, approved boolean)")
        self.postgres = {
            "host": parts.hostname, "port": parts.port, "database": "business", "user": parts.username,
            "password": parts.password,
        }  # fmt: skip
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fill(self, more: int = 0) -> None:
        """Put the rows into the database, and `more` that are plain."""
        rows = [*ROWS, *((f"Question {n}", f"Answer {n}", True) for n in range(more))]
        with psycopg.connect(self._business) as db:
            db.execute("delete from answers")
            db.cursor().executemany("insert into answers (question, answer, approved) values (%s, %s, %s)", rows)

    def clear(self) -> None:
        """Take every row away."""
        with psycopg.connect(self._business) as db:
            db.execute("delete from answers")

    def close(self) -> None:
        """Be gone."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        here = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Silent."""

            def do_POST(self) -> None:
                here.alerts.append(json.loads(self.rfile.read(int(self.headers["content-length"])))["text"])
                self._say({})

            def do_GET(self) -> None:
                self._say(here.answers)

            def _say(self, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        return Handler
