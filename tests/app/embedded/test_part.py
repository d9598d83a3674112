"""A part's life: it ends with its parent, is found again by the next start, and is ended by force if need be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.embedded import part
from app.nextflow.shim import started_at
from app.settings import child_environment

pytestmark = pytest.mark.unit

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def start(state: Path, argv: list[str]) -> part.Part:
    made = part.start("sleeper", argv, state=state, env=child_environment({}))
    wait(lambda: "up" in made.tail())
    return made


def test_a_part_is_asked_and_ends(tmp_path: Path) -> None:
    made = start(tmp_path, SLEEPER)
    assert made.stop(20)
    assert made.process.returncode == -signal.SIGTERM
    assert not made.record.exists()


def test_a_part_that_does_not_listen_is_ended_by_force(tmp_path: Path) -> None:
    made = start(tmp_path, DEAF)
    assert not made.stop(0.2)
    assert made.process.returncode == -signal.SIGKILL


def test_a_part_left_over_is_ended_by_the_next_start(tmp_path: Path) -> None:
    left = start(tmp_path, SLEEPER)
    now = start(tmp_path, SLEEPER)
    assert left.process.wait(20) == -signal.SIGTERM
    assert now.alive
    now.stop(20)


def test_a_process_that_only_has_the_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record = tmp_path / "pids" / "sleeper.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"pid": other.pid, "started": started_at(other.pid), "argv": SLEEPER}))
    assert not part.end_left_over(record, signal.SIGTERM)
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}'])
def test_a_broken_record_harms_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    assert not part.end_left_over(tmp_path / "broken.json", signal.SIGTERM)


def test_a_part_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from app.embedded import part; from app.settings import child_environment\n"
        "made = part.start('sleeper', sys.argv[2:], state=Path(sys.argv[1]), env=child_environment({}))\n"
        "print(made.process.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *SLEEPER], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait(lambda: "up" in part.log_tail(tmp_path / "logs" / "sleeper.log", 5))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    if sys.platform != "linux":  # elsewhere the next start does it
        part.end_left_over(tmp_path / "pids" / "sleeper.json", signal.SIGTERM)
    wait(lambda: started_at(pid) is None or not psutil.pid_exists(pid))


def test_logs_are_for_their_owner_only(tmp_path: Path) -> None:
    made = start(tmp_path, SLEEPER)
    made.stop(20)
    assert made.log.stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path / "pids") == []  # noqa: PTH208 - names are compared
