"""The API as it is served: a real Postgres, a real S3 server, uvicorn on a free port, two projects with a key each."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import pytest_asyncio
from botocore.config import Config
from openai import OpenAI
from pydantic import SecretStr

import migrations
from app.auth import key_hash
from app.db import Database
from app.embedded.postgres import PostgresServer, start_postgres
from app.embedded.s3 import S3Server, start_s3
from app.main import Server, config, create_app
from app.models import ApiKey, Project
from app.nextflow import install
from app.settings import Settings

BUCKET = "llamaflow-data"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}"}]}).encode()
    + b"\n"
    for n in range(12)
)
DATASET = f"s3://{BUCKET}/api/train.jsonl"
PROJECTS = {"alpha": ["read", "write", "admin"], "beta": ["read", "write"], "gamma": ["read"]}
"""Project → scopes of its key `lf-<project>`; gamma may only read."""


@dataclass
class Service:
    """A served API and what stands behind it."""

    url: str
    settings: Settings
    s3: Any

    def http(self, project: str = "alpha", **headers: str) -> httpx.Client:
        """A plain HTTP client with a project's key."""
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer lf-{project}", **headers}, timeout=30, trust_env=False
        )


@pytest.fixture(scope="session")
def api_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="session")
def api_postgres(api_state: Path) -> Iterator[PostgresServer]:
    server = start_postgres(api_state)
    migrations.upgrade(server.url.replace("postgresql://", "postgresql+psycopg://"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def api_s3(api_state: Path) -> Iterator[S3Server]:
    server = start_s3(api_state, install.ensure(Settings().tools))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def api_settings(api_state: Path, api_postgres: PostgresServer, api_s3: S3Server) -> Settings:
    return Settings(
        state_dir=api_state,
        database_url=SecretStr(api_postgres.url),
        s3_endpoint=api_s3.endpoint,
        s3_access_key=SecretStr(api_s3.access_key),
        s3_secret_key=SecretStr(api_s3.secret_key),
        webhook_allow=["127.0.0.1:5678"],
        max_upload_bytes=40 << 20,
        max_body_bytes=64 << 10,
        auth_failures=100_000,
    )


@contextmanager
def serving(settings: Settings, port: int = 0) -> Iterator[str]:
    """The API on a free port or this one, in a thread with an event loop of its own; its address."""
    listener = socket.create_server(("127.0.0.1", port))
    server = Server(config(create_app(settings), settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the API ended while it started"
        assert time.monotonic() < deadline, "the API did not start"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listener.close()


@pytest_asyncio.fixture(scope="session")
async def db(api_settings: Settings) -> AsyncIterator[Database]:
    """The service's database, with the projects in it."""
    database = Database.from_settings(api_settings)
    async with database.transaction() as session:
        for name, scopes in PROJECTS.items():
            session.add(Project(id=f"proj_{name}", name=name))
            await session.flush()
            session.add(ApiKey(id=f"key_{name}", project_id=f"proj_{name}", hash=key_hash(f"lf-{name}"), scopes=scopes))
    yield database
    await database.close()


@pytest.fixture(scope="session")
def service(api_settings: Settings, api_s3: S3Server, db: Database) -> Iterator[Service]:
    s3 = boto3.client(
        "s3",
        endpoint_url=api_s3.endpoint,
        aws_access_key_id=api_s3.access_key,
        aws_secret_access_key=api_s3.secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    s3.put_object(Bucket=BUCKET, Key="api/train.jsonl", Body=ROWS)
    with serving(api_settings) as url:
        yield Service(url, api_settings, s3)
    s3.close()


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[OpenAI]:
    """The official client, unmodified, which refuses answers of another shape."""
    with OpenAI(
        base_url=service.url + "/v1", api_key="lf-alpha", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture(scope="session")
def http(service: Service) -> Iterator[httpx.Client]:
    with service.http() as made:
        yield made


def job_body(**fields: Any) -> dict[str, Any]:
    """A request that is accepted."""
    return {"model": MODEL, "training_file": DATASET, **fields}


async def until(condition: Any, seconds: float = 10.0) -> Any:
    """What `condition` answers, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
    return answer
