"""The API as a process: it says where it serves, logs one JSON object a line, stops in good order, and explains a port in use."""

from __future__ import annotations

import ipaddress
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import psycopg
import pytest

import migrations
from app.embedded.environment import for_part
from app.embedded.postgres import PostgresServer
from app.embedded.s3 import S3Server
from tests.app.conftest import Service

pytestmark = pytest.mark.db


@pytest.fixture
def empty_database(api_postgres: PostgresServer) -> Iterator[str]:
    """A migrated database with nothing in it."""
    name = "llamaflow_empty"
    with psycopg.connect(api_postgres.url, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    url = api_postgres.url.rpartition("/")[0] + f"/{name}"
    migrations.upgrade(url)
    yield url
    with psycopg.connect(api_postgres.url, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


ARGV = [sys.executable, "-c", "from app.cli import main; main()", "serve"]


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_logs_and_stops(service: Service, ending: signal.Signals) -> None:
    env = for_part(service.settings, {"LLAMAFLOW_PORT": "0"})
    with subprocess.Popen(ARGV, env=env, stderr=subprocess.PIPE, text=True) as api:
        assert api.stderr is not None
        url = json.loads(api.stderr.readline())["url"]
        while json.loads(api.stderr.readline())["event"] != "Application startup complete.":
            pass
        headers = {"authorization": "Bearer lf-alpha", "x-request-id": "seen-1"}
        assert httpx.get(f"{url}/v1/models", headers=headers, trust_env=False).status_code == 200
        api.send_signal(ending)
        lines = [json.loads(line) for line in api.stderr]
    assert api.returncode == 0
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["request_id"], line["status"], line["project"], line["level"]) == ("seen-1", 200, "alpha", "info")


def test_a_port_in_use_is_said_in_one_sentence(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = for_part(service.settings, {"LLAMAFLOW_PORT": str(port)})
        done = subprocess.run(ARGV, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 is in use by another program. Set LLAMAFLOW_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def serve(service: Service, **variables: str) -> subprocess.CompletedProcess[str]:
    env = for_part(service.settings, {"LLAMAFLOW_PORT": "0", **variables})
    return subprocess.run(ARGV, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_without_a_key_is_refused_in_one_sentence(
    service: Service, empty_database: str, host: str
) -> None:
    done = serve(service, LLAMAFLOW_HOST=host, LLAMAFLOW_DATABASE_URL=empty_database)
    assert done.returncode == 1
    assert "there is no API key yet. Make one first: llamaflow keys create" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_public_address_with_a_key_is_served_with_a_warning(service: Service) -> None:
    env = for_part(service.settings, {"LLAMAFLOW_PORT": "0", "LLAMAFLOW_HOST": "0.0.0.0"})
    with subprocess.Popen(ARGV, env=env, stderr=subprocess.PIPE, text=True) as api:
        assert api.stderr is not None
        warned, serving = json.loads(api.stderr.readline()), json.loads(api.stderr.readline())
        api.send_signal(signal.SIGTERM)
        api.stderr.read()
    assert (warned["level"], serving["event"]) == ("warning", "serving")
    assert "TLS" in warned["message"]


def test_database_and_s3_listen_on_loopback_alone(api_postgres: PostgresServer, api_s3: S3Server) -> None:
    for part in (api_postgres.part, api_s3.part):
        sockets = psutil.Process(part.process.pid).net_connections("inet")
        listening = [one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN]
        assert listening
        assert all(ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback for address in listening)
