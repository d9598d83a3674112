"""A Postgres and an S3 server that a test takes away and brings back, each on the port and the data it had."""

from __future__ import annotations

from pathlib import Path

from app.embedded.postgres import PostgresServer, start_postgres
from app.embedded.s3 import S3Server, launch_s3, start_s3, wait_for_s3
from app.nextflow.install import Tools


class Servers:
    """Both, below one folder.

    Args:
        state: The folder.
        tools: Of `app.nextflow.install.ensure`.

    Attributes:
        away: Names of those that were taken away: `postgres`, `s3`.
    """

    def __init__(self, state: Path, tools: Tools) -> None:
        self._state, self._tools = state, tools
        self.away: set[str] = set()
        self.postgres: PostgresServer = start_postgres(state)
        self.s3: S3Server = start_s3(state, tools)
        self._port = int(self.s3.endpoint.rpartition(":")[2])

    def take(self, name: str, *, kill: bool) -> None:
        """It ends: by kill -9, or in good order."""
        server = self.postgres if name == "postgres" else self.s3
        self.away.add(name)
        (server.kill if kill else server.stop)()

    def bring(self, name: str) -> None:
        """It is back, and answers."""
        if name == "postgres":
            self.postgres = start_postgres(self._state, self.postgres.port)
        else:
            self.s3 = launch_s3(self._state, self._tools, self._port)
            wait_for_s3(self.s3)
        self.away.discard(name)

    def stop(self) -> None:
        """Both end for good."""
        for name, server in {"postgres": self.postgres, "s3": self.s3}.items():
            if name not in self.away:
                server.stop()
