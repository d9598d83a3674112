"""The service as clients meet it: API, worker, Nextflow on stubs, Postgres, S3; an engine that echoes; a receiver of callbacks."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from app.auth import key_hash
from app.demo.receiver import Receiver
from app.models import ApiKey
from tests.app.conftest import serving
from tests.app.worker.services import SECRET, World, database_url, s3_server, settings, stored, stub_tasks, world
from tests.conformance.engine import EchoEngine

__all__ = ["database_url", "s3_server", "settings", "stored", "stub_tasks", "world"]

KEY = "lf-conformance"


@dataclass
class Place:
    """Where a client goes.

    Attributes:
        url: Of the API, without /v1.
        callback: `host:port` that the service may call, where nothing listens yet.
        receiver: Verifies callbacks with the client's own `unwrap`.
        engine: What answers chats.
    """

    url: str
    callback: str
    receiver: Receiver
    engine: EchoEngine
    key: str = KEY
    secret: str = SECRET
    seen: list[str] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver(SECRET)
    yield made
    made.close()


@pytest.fixture
def engine() -> Iterator[EchoEngine]:
    made = EchoEngine()
    yield made
    made.close()


@pytest_asyncio.fixture
async def place(
    stored: World, stub_tasks: Callable[..., None], receiver: Receiver, engine: EchoEngine
) -> AsyncIterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        callback = f"127.0.0.1:{free.getsockname()[1]}"
    project = await stored.project("acme")
    async with stored.database.transaction() as db:
        scopes = ["read", "write", "admin"]
        db.add(ApiKey(id="key_conformance", project_id=project, hash=key_hash(KEY), scopes=scopes))
    stored.settings = stored.settings.model_copy(
        update={"webhook_allow": [receiver.address, callback], "engine_url": engine.url, "max_upload_bytes": 32 << 20}
    )
    async with stored.working():
        with serving(stored.settings) as url:
            yield Place(url, callback, receiver, engine)
