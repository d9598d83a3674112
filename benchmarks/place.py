"""Where the service is measured: a Postgres and an S3 server of its own, and the API as a process, as `llamaflow up` starts it."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config
from pydantic import SecretStr

from app.db import Database
from app.embedded import folder, part
from app.embedded.environment import for_part
from app.embedded.part import Part
from app.embedded.postgres import start_postgres
from app.embedded.prepare import _bootstrap, new_webhook_secret
from app.embedded.s3 import BUCKET, start_s3
from app.nextflow import install
from app.settings import PROJECT_ROOT, Settings

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
KEY = "lf-benchmark"
DATASET = f"s3://{BUCKET}/benchmark/train.jsonl"
ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}"}]}).encode()
    + b"\n"
    for n in range(12)
)
SERVE = "from app.cli import main; main()"
START_SECONDS = 60.0
UNLIMITED: dict[str, Any] = {"rate_limit": 1e6, "max_open_jobs": 1_000_000}
"""One key makes all the load, which the defaults would refuse."""


@dataclass(frozen=True)
class Place:
    """The surroundings, with the schema, a key and a dataset in them."""

    settings: Settings

    @property
    def url(self) -> str:
        """Of the database, as psycopg takes it."""
        return self.settings.sqlalchemy_url.replace("+psycopg", "", 1)

    def database(self) -> Database:
        """A pool of its own, for the event loop that asks."""
        return Database.from_settings(self.settings)

    @contextmanager
    def serving(self, tree: Path = PROJECT_ROOT) -> Iterator[Served]:
        """The API of a source tree, on a free port."""
        port = folder.free_port()
        env = for_part(self.settings, {"PYTHONPATH": str(tree)})
        argv = [sys.executable, "-c", SERVE, "serve", "--host", "127.0.0.1", "--port", str(port)]
        with self.running(f"api-{tree.name}", argv, env, port) as process:
            yield Served(port, process)

    @contextmanager
    def running(self, name: str, argv: list[str], env: dict[str, str], port: int) -> Iterator[Part]:
        """A process that serves HTTP on `port`, until the block ends."""
        process = part.start(name, argv, state=self.settings.state_dir, env=env)
        try:
            _wait(process, port)
            yield process
        finally:
            process.stop()

    def environment(self) -> dict[str, str]:
        """For a process of this tree beside the service."""
        return for_part(self.settings, {"PYTHONPATH": str(PROJECT_ROOT)})


@dataclass(frozen=True)
class Served:
    """An API that answers."""

    port: int
    part: Part

    def upload(self) -> str:
        """A dataset as a user uploads it; its `file-…` id."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/v1/files",
            headers={"authorization": f"Bearer {KEY}"},
            data={"purpose": "fine-tune"},
            files={"file": ("train.jsonl", ROWS)},
            trust_env=False,
            timeout=30,
        )
        answer.raise_for_status()
        return str(answer.json()["id"])


@contextmanager
def place(**changes: object) -> Iterator[Place]:
    """Postgres, migrated, and S3, in a folder that goes with them."""
    state = folder.prepare(Path(tempfile.mkdtemp(prefix="llamaflow-benchmark-")))
    tools = Settings().tools
    postgres = start_postgres(state)
    s3 = start_s3(state, install.ensure(tools))
    try:
        settings = Settings(
            state_dir=state, tools_dir=tools, database_url=SecretStr(postgres.url), s3_endpoint=s3.endpoint,
            s3_access_key=SecretStr(s3.access_key), s3_secret_key=SecretStr(s3.secret_key),
            **UNLIMITED,
        ).model_copy(update=changes)  # fmt: skip
        migrate(settings)
        _store(settings)
        yield Place(settings)
    finally:
        s3.stop()
        postgres.stop()
        shutil.rmtree(state, ignore_errors=True)


def migrate(settings: Settings) -> None:
    """Give the database the schema and the project its key."""
    import migrations

    migrations.upgrade(settings.sqlalchemy_url)
    asyncio.run(_bootstrap(settings, KEY, new_webhook_secret()))


def _store(settings: Settings) -> None:
    access, secret = settings.s3_access_key, settings.s3_secret_key
    assert access is not None
    assert secret is not None
    s3 = boto3.client(
        "s3", endpoint_url=settings.s3_endpoint, region_name="us-east-1", aws_access_key_id=access.get_secret_value(),
        aws_secret_access_key=secret.get_secret_value(), config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip
    s3.put_object(Bucket=BUCKET, Key=DATASET.removeprefix(f"s3://{BUCKET}/"), Body=ROWS)
    s3.close()


def _wait(process: Part, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            return
        except OSError:
            if not process.alive or time.monotonic() > deadline:
                raise SystemExit(f"{process.name} did not start:\n{process.tail(40)}") from None
            time.sleep(0.05)
        finally:
            connection.close()
