"""`llamaflow up` as its user sees it: ready, watched over, alone on its folder, and gone without a trace."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.embedded import part
from app.embedded.background import Running, StartError, start
from app.embedded.environment import for_part
from app.embedded.folder import read_json
from app.settings import Settings

pytestmark = pytest.mark.db

NO_ENGINE = {"LLAMAFLOW_PORT": "0", "LLAMAFLOW_ENGINE_URL": "http://127.0.0.1:9"}


def settings(state: Path) -> Settings:
    shared = Settings()
    return Settings(state_dir=state, tools_dir=shared.tools, cache_dir=shared.cache)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(settings(tmp_path_factory.mktemp("up") / "state"), NO_ENGINE)
    yield running
    running.stop()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def answers(service: Running) -> bool:
    try:
        found = httpx.get(
            f"{service.url}/v1/models", headers={"authorization": f"Bearer {service.api_key}"}, trust_env=False
        )
    except httpx.TransportError:
        return False
    return found.status_code == 200


def up(state: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = for_part(settings(state), NO_ENGINE | variables)
    return subprocess.run([part.CLI, "up"], env=env, capture_output=True, text=True, timeout=60, check=False)


def belonging(state: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    lines = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(state) in line and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            lines.append(line)
    return lines


def test_its_key_opens_the_api_and_its_secrets_are_closed(service: Running) -> None:
    assert answers(service)
    assert service.api_key.startswith("lf-")
    assert len(service.api_key) == 46
    assert service.webhook_secret.startswith("whsec_")
    for name in ("api_key", "webhook_secret", "s3.env", "up.json"):
        assert (service.state_dir / name).stat().st_mode & 0o077 == 0


def test_a_second_one_on_the_same_folder_is_refused(service: Running) -> None:
    second = up(service.state_dir)
    assert second.returncode == 1
    assert f"already runs on {service.state_dir} ({service.url}" in second.stderr
    assert answers(service)


def test_a_second_background_one_is_refused_and_harms_nobody(service: Running) -> None:
    with pytest.raises(StartError, match="already runs on"):
        start(settings(service.state_dir), NO_ENGINE)
    assert answers(service)


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = up(tmp_path, LLAMAFLOW_PORT=str(port))
    assert refused.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in refused.stderr
    assert "LLAMAFLOW_PORT" in refused.stderr


@pytest.mark.parametrize("name", ["api", "s3", "postgres"])
def test_a_part_that_dies_is_started_again(service: Running, name: str) -> None:
    record = service.state_dir / "pids" / f"{name}.json"
    pid = read_json(record)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait(lambda: read_json(record).get("pid", pid) != pid)
    wait(lambda: answers(service))


def test_after_kill_9_of_it_the_next_start_has_all_and_nothing_is_left_running(tmp_path: Path) -> None:
    first = start(settings(tmp_path), NO_ENGINE)
    first.kill()
    second = start(settings(tmp_path), NO_ENGINE)
    assert answers(second)
    assert (second.api_key, second.s3_endpoint) == (first.api_key, first.s3_endpoint)
    second.stop()
    wait(lambda: belonging(tmp_path) == [])
    assert list((tmp_path / "pids").iterdir()) == []
    assert not (tmp_path / "up.json").exists()


def test_what_a_killed_worker_has_left_is_named_at_the_end(tmp_path: Path) -> None:
    running = start(settings(tmp_path), NO_ENGINE)
    work = tmp_path / "runs" / "ftjob-left"
    work.mkdir(parents=True)
    left = subprocess.Popen(["/bin/sleep", "60"], env={"LLAMAFLOW_RUN": "ftjob-left"}, cwd=work)
    other = subprocess.Popen(["/bin/sleep", "60"], env={"LLAMAFLOW_RUN": "ftjob-of-another-service"})
    try:
        running.stop()
    finally:
        for process in (left, other):
            process.kill()
            process.wait()
    said = (tmp_path / "logs" / "up.log").read_text()
    assert f"Stopped, but the pipeline of a job goes on by itself: ftjob-left (pids {left.pid})" in said
    assert "ftjob-of-another-service" not in said
