"""The API beside the workers of a test, asked as a client asks it: what is accepted there must come true in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from app.auth import key_hash
from app.models import ApiKey, Job
from tests.app.conftest import serving
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, until

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
KEY = "lf-asks"


@dataclass
class Asks:
    """A client of the world's API."""

    world: World
    http: httpx.AsyncClient

    async def __call__(self, job_id: str, action: str) -> httpx.Response:
        """Ask for one of cancel, pause, resume, retry."""
        return await self.http.post(f"/v1/fine_tuning/jobs/{job_id}/{action}")

    async def status(self, job_id: str, action: str) -> str:
        """Ask, be accepted, and be told the job's status."""
        answer = await self(job_id, action)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["status"])

    async def becomes(self, job_id: str, *wanted: str, seconds: float = 120.0) -> Job:
        """The job, once it has one of these statuses."""

        async def there() -> Job | None:
            job = await self.world.get(job_id)
            return job if job.status in wanted else None

        found: Job = await until(there, seconds)
        return found

    async def steps(self, job_id: str, least: int, seconds: float = 120.0) -> None:
        """Wait until the training has told so many steps."""

        async def there() -> bool:
            return (((await self.world.get(job_id)).progress or {}).get("step") or 0) >= least

        await until(there, seconds)


@asynccontextmanager
async def asking(world: World) -> AsyncIterator[Asks]:
    """The API of a world, until the block ends."""
    with serving(world.settings) as url:
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            yield Asks(world, http)


async def project(world: World) -> str:
    """A project with the key that is asked with."""
    made = await world.project()
    async with world.database.transaction() as db:
        db.add(ApiKey(id="key-asks", project_id=made, hash=key_hash(KEY), scopes=["read", "write"]))
    return made


async def begin(world: World, receiver: Receiver | None = None, **spec: Any) -> str:
    """A new job in a project that can be asked; it calls back if there is a receiver."""
    fields = {"model": MODEL, "suffix": "fault"} | spec
    return await world.job(await project(world), callback=receiver.url if receiver else None, **fields)
