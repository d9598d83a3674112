"""The API beside the workers of a test, with keys of several projects: for what one may do to another, or to the service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from app.auth import key_hash
from app.models import ApiKey, Project, SigningSecret, new_id
from tests.app.conftest import serving
from tests.app.worker.services import SECRET, World

JOBS = "/v1/fine_tuning/jobs"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROW = b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'


async def make_project(world: World, name: str, key: str) -> str:
    """A project with a key that may do everything."""
    async with world.database.transaction() as db:
        row = Project(id=new_id("proj_"), name=name)
        db.add(row)
        await db.flush()
        db.add(ApiKey(id=new_id("key_"), project_id=row.id, hash=key_hash(key), scopes=["read", "write", "admin"]))
        db.add(SigningSecret(id=new_id("sig_"), project_id=row.id, secret=SECRET))
        return row.id


@asynccontextmanager
async def doors(world: World, *keys: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """The API of a world until the block ends; a client for each key."""
    with serving(world.settings) as url:
        clients = [
            httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False)
            for key in keys
        ]
        try:
            yield clients
        finally:
            for client in clients:
                await client.aclose()
