"""Fixtures of the worker's tests, imported by name: a real Postgres, a real S3 server, jobs as the API makes them, workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr
from sqlalchemy import delete, select

import migrations
from app.db import Database
from app.embedded.environment import as_variables
from app.embedded.postgres import start_postgres
from app.embedded.s3 import S3Server, start_s3
from app.files.storage import connect
from app.jobs import lifecycle
from app.models import ApiKey, Event, Job, Project, Run, SigningSecret, Table, new_id
from app.nextflow import install
from app.settings import Settings
from app.worker.__main__ import Stop, run_worker
from finetune.config import JobSpec
from finetune.steps import ModelSource

BUCKET = "llamaflow-data"
SECRET = "whsec_" + "NjRoZXg2NGhleDY0aGV4NjRoZXg2NGhleDY0aGV4NjRoZXg2NGhleDY0aGV4NjRoZXg2NGhleDY0aGV4NjRoZQ=="
ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n}"}, {"role": "assistant", "content": f"Answer {n}"}]}
    for n in range(12)
]
MODEL = ModelSource(id="tiny", kind="path", location="/nowhere/tiny")


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 20.0) -> Any:
    """What `condition` answers, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := await condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
    return answer


@dataclass
class World:
    """The service's surroundings, and what the API would do."""

    settings: Settings
    database: Database

    async def project(self, name: str = "default", secret: str = SECRET) -> str:
        """A project with a key and a signing secret."""
        async with self.database.transaction() as db:
            row = Project(id=new_id("proj_"), name=name)
            db.add(row)
            await db.flush()
            db.add(ApiKey(id=f"key-{row.id}", project_id=row.id, hash=row.id, scopes=["write"]))
            db.add(SigningSecret(id=new_id("whs_"), project_id=row.id, secret=secret))
            return row.id

    async def job(self, project: str, *, status: str | None = None, callback: str | None = None, **spec: Any) -> str:
        """A job as the API creates it; `status` sets another one, as if it had come so far."""
        spec = {"model": "tiny", "training_file": f"s3://{BUCKET}/train.jsonl"} | spec
        made = JobSpec.model_validate(spec)
        async with self.database.transaction() as db:
            row = Job(
                id=new_id("ftjob-"), project_id=project, api_key_id=f"key-{project}", spec=made.model_dump(mode="json"),
                model=made.model, base=MODEL.model_dump(mode="json"), training_file=made.training_file,
                validation_file=made.validation_file, suffix=made.suffix, seed=made.seed, callback_url=callback,
                priority=made.execution.priority, request_hash="",
            )  # fmt: skip
            await lifecycle.created(db, row)
            if status is not None:
                row.status = status
                row.training_objects = [{"uri": made.training_file, "etag": "x", "size": 1}]
            return row.id

    async def get(self, job_id: str) -> Job:
        """The job's row."""
        async with self.database.transaction() as db:
            return (await db.execute(select(Job).where(Job.id == job_id))).scalar_one()

    async def cancel(self, job_id: str) -> None:
        """Ask for a cancel, as the API does for a job that somebody owns."""
        async with self.database.transaction() as db:
            job = await lifecycle.lock(db, job_id)
            job.cancel_requested_at = await lifecycle.now(db)
            await lifecycle.wake(db, job_id)

    async def messages(self, job_id: str) -> list[str]:
        """What the job's events say, in order."""
        return [event.message for event in await self.events(job_id)]

    async def events(self, job_id: str) -> list[Event]:
        """The job's events, in order."""
        async with self.database.transaction() as db:
            return list((await db.execute(select(Event).where(Event.job_id == job_id).order_by(Event.seq))).scalars())

    async def rows(self, table: type[Any]) -> list[Any]:
        """Every row of a table, oldest first."""
        async with self.database.transaction() as db:
            by = table.started_at if table is Run else table.created_at
            return list((await db.execute(select(table).order_by(by))).scalars())

    async def is_over(self, job_id: str) -> Job | None:
        """The job, once it is final."""
        job = await self.get(job_id)
        return job if job.finished_at else None

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        connect(self.settings).put_object(Bucket=BUCKET, Key=key, Body=content)

    def content(self, key: str) -> bytes:
        """An object."""
        return connect(self.settings).get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix."""
        answer = connect(self.settings).list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [row["Key"] for row in answer.get("Contents", [])]

    @asynccontextmanager
    async def working(self, **changes: Any) -> AsyncIterator[Stop]:
        """A worker in this process, until the block ends."""
        stop = Stop()
        task = asyncio.create_task(run_worker(self.settings.model_copy(update=changes), stop))
        try:
            yield stop
        finally:
            stop.ask(halt=False)
            await task

    def worker_process(
        self, *, within: Sequence[str] = (), env: dict[str, str] | None = None, **changes: Any
    ) -> subprocess.Popen[bytes]:
        """A worker as a process of its own, started by the command `within`, with more variables in `env`."""
        made = environment(self.settings.model_copy(update=changes)) | (env or {})
        return subprocess.Popen([*within, sys.executable, "-m", "app.worker"], env=made, stdout=sys.stderr)


def environment(settings: Settings) -> dict[str, str]:
    """The variables that make these settings, for a process."""
    made = as_variables(settings) | {"LLAMAFLOW_LOG_FORMAT": "console"}
    made |= {} if settings.unshared_profiles else {"LLAMAFLOW_UNSHARED_PROFILES": "none"}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", *settings.task_env) if name in os.environ}
    return {**kept, **made, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Postgres with the newest schema."""
    server = start_postgres(tmp_path_factory.mktemp("postgres"))
    migrations.upgrade(server.url)
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with the bucket llamaflow-data."""
    server = start_s3(tmp_path_factory.mktemp("s3"), install.ensure(Settings().tools))
    yield server
    server.stop()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings without S3."""
    return Settings(
        state_dir=tmp_path, tools_dir=Settings().tools, database_url=SecretStr(database_url), poll_seconds=0.2,
        lease_seconds=3.0, heartbeat_seconds=0.5, s3_endpoint="http://127.0.0.1:9", stub_run=True,
        s3_access_key=SecretStr("none"), s3_secret_key=SecretStr("none"),
    )  # fmt: skip


@pytest_asyncio.fixture
async def world(settings: Settings) -> AsyncIterator[World]:
    """An empty database and a folder of its own; no S3."""
    database = Database.from_settings(settings)
    async with database.transaction() as db:
        for table in reversed(Table.metadata.sorted_tables):  # quicker than truncate, which syncs a file a table
            await db.execute(delete(table))
    yield World(settings, database)
    await database.close()


@pytest_asyncio.fixture
async def stored(world: World, s3_server: S3Server) -> World:
    """The same with S3, where a dataset of twelve rows lies at train.jsonl."""
    world.settings = world.settings.model_copy(
        update={
            "s3_endpoint": s3_server.endpoint,
            "s3_access_key": SecretStr(s3_server.access_key),
            "s3_secret_key": SecretStr(s3_server.secret_key),
        }
    )
    await asyncio.to_thread(world.put, "train.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode())
    return world


@pytest.fixture
def stub_tasks(monkeypatch: pytest.MonkeyPatch, stored: World) -> Callable[..., None]:
    """Set how the pipeline's stubs behave: LLAMAFLOW_STUB_… variables reach the tasks by name only."""

    def behave(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"LLAMAFLOW_STUB_{name.upper()}", value)
        named = [f"LLAMAFLOW_STUB_{name.upper()}" for name in values]
        stored.settings = stored.settings.model_copy(update={"task_env": [*stored.settings.task_env, *named]})

    behave(upload="1")
    return behave


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)
