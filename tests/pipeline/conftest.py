"""A real Nextflow on this repository's pipeline, and a real S3 server with a bucket."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from app.nextflow import install
from app.settings import Settings
from finetune import s3
from finetune.steps import S3

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "llamaflow-data"


@dataclass(frozen=True)
class Nextflow:
    """The embedded Nextflow, started in a folder as the service starts it."""

    tools: install.Tools

    def __call__(
        self, folder: Path, *args: str, env: dict[str, str] | None = None, command: str = "run"
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end; standard error stands in `stdout` too."""
        argv, made = self._argv(command, args), self._env(env)
        return subprocess.run(
            argv, cwd=folder, env=made, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )

    def start(self, folder: Path, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start it and come back."""
        argv, made = self._argv("run", args), self._env(env)
        return subprocess.Popen(argv, cwd=folder, env=made, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)

    def _argv(self, command: str, args: tuple[str, ...]) -> list[str]:
        main = {"run": [str(ROOT / "pipeline" / "main.nf"), "-profile", "local", "-ansi-log", "false"]}
        return [
            *self.tools.nextflow_argv,
            "-log",
            "nextflow.log",
            command,
            *main.get(command, [str(ROOT / "pipeline")]),
            *args,
        ]

    def _env(self, more: dict[str, str] | None) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return kept | {"PATH": path, "OMP_NUM_THREADS": "1"} | self.tools.env | (more or {})


@dataclass(frozen=True)
class Storage:
    """The bucket `llamaflow-data` of a real S3 server.

    Attributes:
        access: As a step file has it; its credentials file carries keys and endpoint.
        env: The same for a process that takes them from its environment.
        secret: The secret key.
        client: boto3's.
    """

    access: S3
    env: dict[str, str]
    secret: str
    client: Any

    def uri(self, key: str) -> str:
        return f"s3://{BUCKET}/{key}"

    def put(self, key: str, content: bytes) -> str:
        """Write an object; its ETag."""
        answer = self.client.put_object(Bucket=BUCKET, Key=key, Body=content, ContentType="application/json")
        return str(answer["ETag"]).strip('"')

    def get(self, uri: str) -> bytes:
        """An object's bytes."""
        bucket, key = s3.split(uri)
        return bytes(self.client.get_object(Bucket=bucket, Key=key)["Body"].read())


@pytest.fixture(scope="session")
def tools() -> install.Tools:
    """The Java parts, installed once."""
    return install.ensure(Settings().tools)


@pytest.fixture(scope="session")
def nextflow(tools: install.Tools) -> Nextflow:
    return Nextflow(tools)


@pytest.fixture(scope="session")
def storage(tools: install.Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    folder, secret = tmp_path_factory.mktemp("s3"), secrets.token_hex(20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "objects").mkdir()
    (folder / "s3.properties").write_text(install.s3_properties(port, "tests", secret, folder / "objects"))
    env = {
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
    }
    (folder / "s3.env").write_text("".join(f"{name}={value}\n" for name, value in env.items()))
    access = S3(credentials_file=str(folder / "s3.env"))
    with (folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(
            [*tools.s3proxy_argv, "--properties", "s3.properties"], cwd=folder, stdout=log, stderr=log
        )
    try:
        made = Storage(access, env, secret, s3.client(access))
        _wait_for(server, made.client)
        yield made
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(server: subprocess.Popen[bytes], client: Any) -> None:
    """Make the bucket as soon as the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except (BotoCoreError, ClientError):
            assert server.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.1)
