"""A real n8n: its own database and folder, its command line for what is imported, its log for when it is ready.

It can be killed and started again: what waited then goes on. Waits of less than 65 seconds are in its memory alone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from scripts import n8n

READY = "Editor is now accessible via"
START_SECONDS = 300.0


def free_port() -> int:
    """A port where nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Execution:
    """One execution of a workflow.

    Attributes:
        runs: Node → for each of its runs the items it put out, over all outputs.
    """

    id: str
    status: str
    runs: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)


class N8n:
    """n8n on one machine, with Postgres.

    Args:
        folder: Of its own.
        database_url: Of a Postgres whose role may make databases.
    """

    def __init__(self, folder: Path, database_url: str) -> None:
        self.port, self._log = free_port(), folder / "n8n.log"
        self.url = f"http://127.0.0.1:{self.port}"
        plain = database_url.replace("postgresql+psycopg://", "postgresql://")
        with psycopg.connect(plain, autocommit=True) as db:
            db.execute("create database n8n")
        parts = urlsplit(plain)
        self._database = parts._replace(path="/n8n").geturl()
        self._process: subprocess.Popen[bytes] | None = None
        self._env = {
            "PATH": f"{n8n.node()}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder), "N8N_USER_FOLDER": str(folder),
            "NO_PROXY": "127.0.0.1", "GENERIC_TIMEZONE": "UTC", "N8N_ENCRYPTION_KEY": "for-tests-only",
            "DB_TYPE": "postgresdb", "DB_POSTGRESDB_HOST": parts.hostname or "", "DB_POSTGRESDB_PORT": str(parts.port),
            "DB_POSTGRESDB_DATABASE": "n8n", "DB_POSTGRESDB_USER": parts.username or "",
            "DB_POSTGRESDB_PASSWORD": parts.password or "",
            "N8N_PORT": str(self.port), "N8N_HOST": "127.0.0.1", "N8N_LISTEN_ADDRESS": "127.0.0.1",
            "N8N_RUNNERS_ENABLED": "true", "N8N_RUNNERS_BROKER_PORT": str(free_port()), "WEBHOOK_URL": f"{self.url}/",
            "N8N_SECURE_COOKIE": "false", "N8N_DIAGNOSTICS_ENABLED": "false", "N8N_PERSONALIZATION_ENABLED": "false",
            "N8N_VERSION_NOTIFICATIONS_ENABLED": "false", "N8N_TEMPLATES_ENABLED": "false",
            "N8N_ENFORCE_SETTINGS_FILE_PERMISSIONS": "true",
        }  # fmt: skip

    def command(self, *words: str) -> str:
        """n8n's command line, to its end; what it said."""
        argv = [n8n.node() / "node", n8n.PROGRAM, *words]
        done = subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        """Start it, and wait until its webhooks are there."""
        with self._log.open("wb") as log:
            argv = [n8n.node() / "node", n8n.PROGRAM, "start"]
            self._process = subprocess.Popen(
                argv, env=self._env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while READY not in self.log():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9, and of its task runner too."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """End it, in good order if it does so soon."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def log(self) -> str:
        """What it said since it was started last."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def active(self) -> set[str]:
        """Ids of the active workflows."""
        return {row[0] for row in self._rows("select id from workflow_entity where active")}

    def executions(self, workflow_id: str) -> list[Execution]:
        """What ran of a workflow, oldest first."""
        found = self._rows(
            'select e.id, e.status, d.data from execution_entity e join execution_data d on d."executionId" = e.id '
            'where e."workflowId" = %s order by e.id',
            workflow_id,
        )
        return [Execution(str(row[0]), row[1], _runs(row[2])) for row in found]

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with psycopg.connect(self._database) as db:
            return db.execute(query, values).fetchall()  # type: ignore[call-overload,no-any-return]


def _runs(data: str) -> dict[str, list[list[dict[str, Any]]]]:
    whole = unflatten(json.loads(data))
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for name, runs in (whole.get("resultData", {}).get("runData") or {}).items():
        found[name] = [list(_items(run)) for run in runs]
    return found


def _items(run: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for outputs in (run.get("data") or {}).values():
        for items in outputs:
            yield from (item["json"] for item in items or [])


def unflatten(parts: list[Any]) -> Any:
    """A value as the package `flatted` writes it: a list of values in which every text stands for a place in the list."""
    made: dict[int, Any] = {}

    def at(place: int) -> Any:
        if place not in made:
            value = parts[place]
            made[place] = None
            if isinstance(value, dict):
                made[place] = {}
                made[place].update({key: inner(part) for key, part in value.items()})
            elif isinstance(value, list):
                made[place] = []
                made[place].extend(inner(part) for part in value)
            else:
                made[place] = value
        return made[place]

    def inner(part: Any) -> Any:
        return at(int(part)) if isinstance(part, str) else part

    return at(0)
