"""The API as a process: it says where it serves, logs one JSON object a line, stops in good order, and explains a port in use."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from app.embedded.environment import for_part
from tests.app.conftest import Service

pytestmark = pytest.mark.db

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
