"""A real n8n beside the real service: the shipped workflows are imported once, filled in as a user does, and triggered.

The service is made anew for every test, always at the same address: API, worker, Nextflow on the pipeline's stubs,
Postgres, S3; an engine that says its question back.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.auth import key_hash
from app.embedded.s3 import S3Server
from app.models import ApiKey, Job
from tests.app.conftest import serving
from tests.app.worker.services import (
    BUCKET,
    SECRET,
    World,
    database_url,
    s3_server,
    settings,
    stored,
    stub_tasks,
    until,
    world,
)
from tests.conformance.engine import EchoEngine
from tests.n8n import filling
from tests.n8n.canvas import FILES, WORKFLOWS, Canvas
from tests.n8n.machine import Execution, N8n, free_port
from tests.n8n.neighbours import Neighbours

__all__ = ["database_url", "s3_server", "settings", "stored", "stub_tasks", "world"]

KEY = "lf-n8n"
ERRORS = "llamaFlowError04"
ENOUGH = 10
"""Corrections with which workflow 6 trains."""
ENDED = ("success", "error", "crashed", "canceled")


@dataclass
class Site:
    """What all tests share.

    Attributes:
        port: Where the service is to be.
        imported: What n8n said when it imported the files as they are.
    """

    n8n: N8n
    port: int
    neighbours: Neighbours
    imported: str

    async def call(self, path: str, **body: Any) -> httpx.Response:
        """POST to a workflow's production webhook; its answer."""
        return await self.post(f"/webhook/{path}", json=body)

    async def post(self, path: str, **content: Any) -> httpx.Response:
        """POST to n8n."""
        async with httpx.AsyncClient(base_url=self.n8n.url, timeout=600, trust_env=False) as http:
            return await http.post(path, **content)


@dataclass
class Place:
    """n8n and a service that runs, for one test."""

    site: Site
    world: World

    @property
    def n8n(self) -> N8n:
        """The n8n."""
        return self.site.n8n

    async def call(self, path: str, **body: Any) -> httpx.Response:
        """As `Site.call`."""
        return await self.site.call(path, **body)

    async def ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Ask the service, as n8n's nodes do with an OpenAi credential."""
        headers = {"authorization": f"Bearer {KEY}", "openai-organization": ""}
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.site.port}", headers=headers, trust_env=False
        ) as http:
            return await http.request(method, path, **content)

    async def job(self, number: int = 1) -> Job:
        """The job of this number, once it is there."""
        jobs: list[Job] = await until(lambda: self._jobs(number), 300)
        return jobs[number - 1]

    async def _jobs(self, least: int) -> list[Job] | None:
        rows = await self.world.rows(Job)
        return rows if len(rows) >= least else None

    async def execution(self, workflow_id: str) -> Execution:
        """The newest execution of a workflow, once it has ended."""

        async def ended() -> Execution | None:
            found = await asyncio.to_thread(self.n8n.executions, workflow_id)
            return found[-1] if found and found[-1].status in ENDED else None

        newest: Execution = await until(ended, 300)
        return newest

    async def alerts(self) -> list[str]:
        """What was alerted, once something was."""

        async def there() -> list[str]:
            return self.site.neighbours.alerts

        told: list[str] = await until(there, 120)
        return told


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, database_url: str, s3_server: S3Server) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("n8n")
    neighbours, n8n, port = Neighbours(folder, database_url), N8n(folder, database_url), free_port()
    service = f"http://127.0.0.1:{port}"
    imported = n8n.command("import:workflow", "--separate", f"--input={WORKFLOWS}")
    values = {
        "service": service, "try_again_seconds": 1, "poll_seconds": 1, "alert_url": f"{neighbours.url}/hook",
        "api": f"{neighbours.url}/answers.json", "bucket": BUCKET, "file": str(neighbours.table),
        "enough": ENOUGH, "held_out": f"s3://{BUCKET}/train.jsonl",
    }  # fmt: skip
    ready = folder / "filled"
    ready.mkdir()
    for path in FILES:
        (ready / path.name).write_text(json.dumps(filling.filled(path, SECRET, values)))
    keys = folder / "credentials.json"
    keys.write_text(json.dumps(filling.credentials(service, KEY, s3_server, neighbours.postgres)))
    n8n.command("import:credentials", f"--input={keys}")
    n8n.command("import:workflow", "--separate", f"--input={ready}")
    n8n.command("update:workflow", "--all", "--active=true")
    n8n.command("update:workflow", f"--id={ERRORS}", "--active=false")
    n8n.start()
    yield Site(n8n, port, neighbours, imported)
    n8n.stop()
    neighbours.close()


@pytest.fixture
def engine() -> Iterator[EchoEngine]:
    made = EchoEngine()
    yield made
    made.close()


@pytest_asyncio.fixture
async def at_rest(stored: World, stub_tasks: Callable[..., None], site: Site, engine: EchoEngine) -> Place:
    """Everything but the service itself, which the test starts."""
    project = await stored.project("acme")
    async with stored.database.transaction() as db:
        db.add(ApiKey(id="key_n8n", project_id=project, hash=key_hash(KEY), scopes=["read", "write"]))
    allowed = [f"127.0.0.1:{site.n8n.port}"]
    stored.settings = stored.settings.model_copy(
        update={"webhook_allow": allowed, "engine_url": engine.url, "port": site.port}
    )
    site.neighbours.alerts.clear()
    site.neighbours.answers.clear()
    return Place(site, stored)


@pytest_asyncio.fixture
async def place(at_rest: Place) -> AsyncIterator[Place]:
    async with at_rest.world.working():
        with serving(at_rest.world.settings, at_rest.site.port):
            yield at_rest


def workflow_id(name: str) -> str:
    """The id of a file of n8n/workflows."""
    return str(Canvas.read(WORKFLOWS / f"{name}.json").raw["id"])
