"""The process door, with real processes: what outlives whom, and what is told about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.nextflow import process, shim
from app.nextflow.process import Handle

pytestmark = pytest.mark.unit

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
HERE = process.here(BOOT_ID)
ENV = {"PATH": os.defpath}


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def start(folder: Path, script: str, label: str = "LABEL=none") -> Handle:
    name, _, value = label.partition("=")
    made = process.launch(
        ("/bin/sh", "-c", script), ENV | {name: value}, folder, cwd=folder, lease=folder / "lease", boot_id=HERE.boot_id
    )
    assert made is not None
    return made


@pytest.fixture
def label(tmp_path: Path) -> Iterator[str]:
    """A label of this test's own; whatever carries it is ended afterwards."""
    made = f"LLAMAFLOW_TEST={tmp_path}"
    yield made
    process.reap(made, 0)


def test_a_child_is_followed_to_its_exit_status(tmp_path: Path, label: str) -> None:
    handle = start(tmp_path, "echo out; echo err >&2; exit 3", label)
    until(lambda: process.exit_record(tmp_path))
    assert process.exit_record(tmp_path) == process.ExitRecord(3, asked=False)
    until(lambda: not process.is_alive(handle, HERE))
    assert ((tmp_path / "stdout.log").read_text(), (tmp_path / "stderr.log").read_text()) == ("out\n", "err\n")


def test_it_outlives_the_process_that_started_it(tmp_path: Path, label: str) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from app.nextflow import process\n"
        "folder, (name, value) = Path(sys.argv[1]), sys.argv[2].split('=', 1)\n"
        "argv = ('/bin/sh', '-c', 'while [ ! -e go ]; do sleep 0.05; done; exit 7')\n"
        f"process.launch(argv, {{'PATH': os.defpath, name: value}}, folder, cwd=folder, lease=folder / 'lease', boot_id={HERE.boot_id!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code, str(tmp_path), label], check=False)
    handle = process.handle(tmp_path)
    assert parent.returncode == -signal.SIGKILL
    assert handle is not None
    assert process.is_alive(handle, HERE)
    (tmp_path / "go").touch()
    until(lambda: process.exit_record(tmp_path))
    assert process.exit_record(tmp_path) == process.ExitRecord(7, asked=False)


def test_a_reused_pid_is_not_taken_for_it(tmp_path: Path, label: str) -> None:
    handle = start(tmp_path, "sleep 60", label)
    assert process.is_alive(handle, HERE)
    assert not process.is_alive(replace(handle, started=str(int(handle.started) - 1)), HERE)
    assert not process.is_alive(handle, replace(HERE, boot_id="another boot"))
    assert not process.is_alive(replace(handle, pid_namespace="1"), HERE)
    process.stop(replace(handle, started="1"), HERE, 0)
    assert process.is_alive(handle, HERE)


def test_stop_asks_the_child_first(tmp_path: Path, label: str) -> None:
    handle = start(tmp_path, "trap 'echo asked > asked; exit 5' TERM; touch ready; while :; do sleep 0.05; done", label)
    until((tmp_path / "ready").exists)
    process.stop(handle, HERE, 10)
    assert process.exit_record(tmp_path) == process.ExitRecord(5, asked=True)
    assert (tmp_path / "asked").exists()


def test_stop_ends_by_force_what_does_not_listen(tmp_path: Path, label: str) -> None:
    handle = start(tmp_path, "trap '' TERM; touch ready; while :; do sleep 0.05; done", label)
    until((tmp_path / "ready").exists)
    process.stop(handle, HERE, 0.3)
    assert not process.is_alive(handle, HERE)
    until(lambda: not process.members(label))


def test_what_a_killed_child_left_running_is_found_by_its_label_and_reaped(tmp_path: Path, label: str) -> None:
    handle = start(tmp_path, "setsid sleep 60 & touch ready; wait", label)
    until((tmp_path / "ready").exists)
    head = process.head(tmp_path)
    assert head is not None
    os.kill(head.pid, signal.SIGKILL)
    until(lambda: not process.is_alive(handle, HERE))
    assert process.exit_record(tmp_path) == process.ExitRecord(-signal.SIGKILL, asked=False)
    assert process.reap(label, 5) == 1
    assert process.members(label) == []


def test_a_folder_launches_once(tmp_path: Path, label: str) -> None:
    start(tmp_path, "echo once", label)
    argv = ("/bin/sh", "-c", "echo twice")
    again = process.launch(argv, ENV, tmp_path, cwd=tmp_path, lease=tmp_path / "lease", boot_id=HERE.boot_id)
    until(lambda: process.exit_record(tmp_path))
    assert again is None
    assert (tmp_path / "stdout.log").read_text() == "once\n"


def test_a_folder_given_up_launches_never(tmp_path: Path) -> None:
    assert process.give_up(tmp_path)
    argv = ("/bin/sh", "-c", "echo never")
    assert process.launch(argv, ENV, tmp_path, cwd=tmp_path, lease=tmp_path / "l", boot_id=HERE.boot_id) is None
    assert process.handle(tmp_path) is None
    assert not (tmp_path / "stdout.log").exists()


def test_a_program_that_cannot_be_started_is_recorded(tmp_path: Path) -> None:
    process.launch(("/nowhere/java",), ENV, tmp_path, cwd=tmp_path, lease=tmp_path / "l", boot_id=HERE.boot_id)
    until(lambda: process.exit_record(tmp_path))
    record = process.exit_record(tmp_path)
    assert record is not None
    assert record.status is None
    assert "/nowhere/java" in str(record.error)


def test_a_silent_worker_ends_its_run_where_another_host_lives(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    lease.write_text(json.dumps({"others": True, "end_after": 0.2}))
    patrol = shim.Patrol(lease, tmp_path / "end")
    assert not patrol.must_end()
    until(patrol.must_end)
    os.utime(lease)
    assert not patrol.must_end()


def test_a_silent_worker_ends_nothing_where_it_was_the_only_host(tmp_path: Path) -> None:
    lease = tmp_path / "lease"
    patrol = shim.Patrol(lease, tmp_path / "end")
    assert not patrol.must_end()
    lease.write_text(json.dumps({"others": False, "end_after": -1.0}))
    assert not patrol.must_end()


def test_a_run_that_another_machine_took_over_ends_and_counts_as_asked_to(tmp_path: Path, label: str) -> None:
    handle = start(tmp_path, "exec sleep 60", label)
    assert process.end_elsewhere(tmp_path, 30)
    record = process.exit_record(tmp_path)
    assert record is not None
    assert (record.status, record.asked) == (-signal.SIGTERM, True)
    process.reap(label, 0)
    until(lambda: not process.is_alive(handle, HERE))


def test_one_that_a_dead_machine_ran_is_not_waited_for_longer_than_told(tmp_path: Path) -> None:
    assert not process.end_elsewhere(tmp_path, 0.2)
    assert (tmp_path / "end").exists()
