"""The embedded S3 server: signed requests only, objects that survive kill -9, no half-written ones."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from app.embedded.s3 import BUCKET, S3Server, start_s3
from app.nextflow import install
from app.settings import Settings

pytestmark = pytest.mark.db

HALF = "0c0ffee0-1111-4222-8333-444444444444"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s3")


@pytest.fixture(scope="module")
def tools() -> install.Tools:
    return install.ensure(Settings().tools)


@pytest.fixture(scope="module")
def server(state: Path, tools: install.Tools) -> Iterator[S3Server]:
    running = start_s3(state, tools)
    yield running
    running.stop()


def client(server: S3Server, secret: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=secret or server.secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


def test_an_object_comes_back_as_it_was_put(server: S3Server) -> None:
    client(server).put_object(Bucket=BUCKET, Key="a/b.bin", Body=bytes(range(256)), Metadata={"run": "42"})
    found = client(server).get_object(Bucket=BUCKET, Key="a/b.bin")
    assert found["Body"].read() == bytes(range(256))
    assert found["Metadata"] == {"run": "42"}


def test_a_wrong_secret_is_refused(server: S3Server) -> None:
    with pytest.raises(ClientError) as refused:
        client(server, "wrong" * 8).list_objects_v2(Bucket=BUCKET)
    assert refused.value.response["Error"]["Code"] == "SignatureDoesNotMatch"


def test_an_unsigned_request_is_refused(server: S3Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{server.endpoint}/{BUCKET}/a/b.bin")


def test_a_shell_can_read_the_credentials_and_nobody_else(server: S3Server, state: Path) -> None:
    assert (state / "s3.env").stat().st_mode & 0o777 == 0o600
    script = 'set -a; . "$0"; set +a; echo "$AWS_ENDPOINT_URL_S3 $AWS_ACCESS_KEY_ID $AWS_SECRET_ACCESS_KEY $AWS_REGION"'
    said = subprocess.run(["/bin/sh", "-c", script, str(state / "s3.env")], capture_output=True, text=True, check=True)
    assert said.stdout.split() == [server.endpoint, server.access_key, server.secret_key, "us-east-1"]


def test_objects_survive_kill_9_and_half_written_ones_do_not(tmp_path: Path, tools: install.Tools) -> None:
    first = start_s3(tmp_path, tools)
    whole = f"report-{HALF}"
    client(first).put_object(Bucket=BUCKET, Key=whole, Body=b"whole, whatever its name")
    first.kill()
    half = tmp_path / "objects" / BUCKET / f"data.jsonl-{HALF}"
    half.write_bytes(b"half")
    second = start_s3(tmp_path, tools)
    assert (second.endpoint, second.secret_key) == (first.endpoint, first.secret_key)
    assert client(second).get_object(Bucket=BUCKET, Key=whole)["Body"].read() == b"whole, whatever its name"
    assert not half.exists()
    second.stop()
    assert not second.alive
