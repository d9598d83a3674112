"""The door to the operating system: starts a program that outlives this process, and says whether it lives and how it ended.

What outlives us: a shim (shim.py, in a session of its own), its child, and what that starts. All of it is found again from
the launch's folder, or by a label in the environment. Knows no jobs, no database, no parsing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.embedded.environment import PASSED_ON
from app.nextflow import shim
from app.nextflow.shim import namespace, started_at
from app.settings import Settings, child_environment

LAUNCH_SECONDS = 30.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Here:
    """Where this process lives: pids mean something only inside one boot and one PID namespace."""

    boot_id: str
    pid_namespace: str


@dataclass(frozen=True)
class Handle:
    """A launched shim: leader of its own session and process group. `started` guards against a reused pid."""

    pid: int
    started: str
    boot_id: str
    pid_namespace: str
    folder: Path


@dataclass(frozen=True)
class ExitRecord:
    """How a child ended. status: its exit status, negative for a signal, None if it never started. asked: by a signal, or by the loss of its worker."""

    status: int | None
    asked: bool
    error: str | None = None


@dataclass(frozen=True)
class Process:
    """A living process and when it started."""

    pid: int
    started: str


def here(boot_id_file: Path) -> Here:
    """This machine since its last start, and this PID namespace."""
    try:
        boot_id = boot_id_file.read_text(encoding="utf-8").strip()
    except OSError:
        boot_id = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "kern.boottime"], capture_output=True, text=True, check=True
        ).stdout.strip()
    return Here(boot_id, namespace())


def launch(
    argv: tuple[str, ...], env: dict[str, str], folder: Path, *, cwd: Path, lease: Path, boot_id: str
) -> Handle | None:
    """Start `argv` under a shim that outlives this process.

    Args:
        argv: The program and its arguments.
        env: Its whole environment.
        folder: Gets handle.json, head.json, stdout.log, stderr.log and, at the end, exit.json. One launch a folder.
        cwd: Where it runs.
        lease: The file whose age tells the shim that its worker is gone; need not be there.
        boot_id: Of this machine.
    Returns:
        None if the folder was used or given up before: nothing was started.
    Raises:
        OSError: The shim itself could not be started. What the child does is told by `exit_record`.
    """
    order = folder / "order.json"
    order.write_text(
        json.dumps(
            {"argv": argv, "cwd": str(cwd), "folder": str(folder), "lease": str(lease), "boot_id": boot_id}, indent=1
        ),
        encoding="utf-8",
    )
    used = (folder / "handle.json").exists()
    with (folder / "stderr.log").open("ab") as err:
        subprocess.run(
            [sys.executable, "-I", "-S", shim.__file__, str(order)],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, timeout=LAUNCH_SECONDS, check=True,
        )  # fmt: skip
    return None if used else handle(folder)


def handle(folder: Path) -> Handle | None:
    """Who was launched in `folder`; None if nobody was, or the folder was given up."""
    made = _read(folder / "handle.json")
    if not made or "pid" not in made or made["started"] is None:
        return None
    return Handle(made["pid"], made["started"], made["boot_id"], made["pid_namespace"], folder)


def give_up(folder: Path) -> bool:
    """Make sure that nothing starts in `folder` any more; False if something did."""
    return shim.write_once(folder / "handle.json", {"given_up": True})


def is_reachable(handle: Handle, here: Here) -> bool:
    """Whether this process can tell if the launched one lives: it may, but from elsewhere it would look dead."""
    return handle.boot_id == here.boot_id and handle.pid_namespace == here.pid_namespace


def is_alive(handle: Handle, here: Here) -> bool:
    """Whether the shim still runs. False after a restart of the machine, for a zombie, and when its pid belongs to another."""
    return is_reachable(handle, here) and started_at(handle.pid) == handle.started


def head(folder: Path) -> Process | None:
    """The child of the shim, if it lives on this machine. After a restart of the machine its pid may be another's."""
    made = _read(folder / "head.json")
    if not made or made["started"] is None or started_at(made["pid"]) != made["started"]:
        return None
    return Process(made["pid"], made["started"])


def stop_head(folder: Path, grace: float) -> None:
    """End a child whose shim was killed: ask it, so that it asks what it started; then by force."""
    found = head(folder)
    if found is not None:
        _signal(found, signal.SIGTERM)
        if not _wait(lambda: head(folder) is None, grace):
            _signal(found, signal.SIGKILL)


def exit_record(folder: Path) -> ExitRecord | None:
    """How the child ended; None while it runs, and for ever if its shim was killed."""
    made = _read(folder / "exit.json")
    if not made:
        return None
    return ExitRecord(made["status"], bool(made.get("asked") or made.get("lost")), made.get("error"))


def end_elsewhere(folder: Path, patience: float) -> bool:
    """Have a launch end that another machine may still run, on a disk shared with it.

    Args:
        folder: Its folder.
        patience: Seconds to wait for its exit record; a machine that is dead writes none.
    Returns:
        Whether it was seen to end.
    """
    shim.write_once(folder / "end", {"pid_namespace": namespace()})
    return _wait(lambda: exit_record(folder) is not None, patience)


def stop(handle: Handle, here: Here, grace: float) -> None:
    """Ask the child to end, wait, then end the whole group by force. Returns when the shim is gone; a dead one is left alone.

    Args:
        handle: The shim; it passes the signal on to its child only.
        here: This machine.
        grace: Seconds between asking and force.
    """
    if not is_alive(handle, here):
        return
    _signal(Process(handle.pid, handle.started), signal.SIGTERM)
    if not _wait(lambda: not is_alive(handle, here), grace):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(handle.pid, signal.SIGKILL)
        _wait(lambda: not is_alive(handle, here), grace)


def members(label: str) -> list[Process]:
    """The living processes that carry `label` (NAME=value) in their environment, this one excepted: shim, child and tasks."""
    found = ((pid, started_at(pid)) for pid in _pids_of(label) if pid != os.getpid())
    return [Process(pid, started) for pid, started in found if started is not None]


def labelled(name: str, below: Path) -> dict[str, list[Process]]:
    """The living processes that carry the variable `name`, by its value: those that work on something below a folder."""
    found: dict[str, list[Process]] = {}
    for pid, value in _carrying(name):
        if pid != os.getpid() and _works_below(pid, below) and (started := started_at(pid)) is not None:
            found.setdefault(value, []).append(Process(pid, started))
    return found


def reap(label: str, grace: float) -> int:
    """End every member: ask all, wait, then by force.

    Returns:
        How many there were.
    """
    first = members(label)
    for process in first:
        _signal(process, signal.SIGTERM)
    for _ in range(4):  # one that is ended may just have started another
        if wait_members(label, grace):
            break
        for process in members(label):
            _signal(process, signal.SIGKILL)
        grace = 2.0
    return len(first)


def wait_members(label: str, seconds: float) -> bool:
    """Wait until no member lives; False if some still do."""
    return _wait(lambda: not members(label), seconds)


def run_nextflow(settings: Settings, arguments: list[str]) -> int:
    """Run the embedded Nextflow in the foreground, with the variables that S3 and the trainer read.

    Returns:
        Its exit status.
    """
    argv, made = nextflow(settings)
    env = child_environment(made, keep=(*PASSED_ON, *BY_HAND, *settings.task_env))
    env["PATH"] = f"{Path(sys.executable).parent}:{env.get('PATH', '')}".rstrip(":")
    return subprocess.run([*argv, *arguments], env=env, check=False).returncode


def nextflow(settings: Settings) -> tuple[list[str], dict[str, str]]:
    """How Nextflow is started, up to its own arguments, and what its environment must have.

    Returns:
        `settings.nextflow` if it names a launcher; else the embedded one, installed first if need be.
    """
    if settings.nextflow is not None:
        return [str(settings.nextflow)], {}
    from app.nextflow import install

    tools = install.ensure(settings.tools)
    return tools.nextflow_argv, tools.env


BY_HAND = (
    "AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
    "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "HF_TOKEN",
    "LLAMAFLOW_CACHE_DIR", "LLAMAFLOW_MODELS_FILE",
)  # fmt: skip
"""Variables a run by hand is given too; a run of the service gets none of them."""


def _pids_of(label: str) -> Iterator[int]:
    if not Path("/proc/self/environ").exists():
        yield from _pids_by_psutil(label)
        return
    wanted = label.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and wanted in _environ(entry).split(b"\0"):
            yield int(entry.name)


def _carrying(name: str) -> Iterator[tuple[int, str]]:
    """Processes that have a variable in their environment, with its value."""
    if not Path("/proc/self/environ").exists():
        yield from _carrying_by_psutil(name)
        return
    start = name.encode() + b"="
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            for word in _environ(entry).split(b"\0"):
                if word.startswith(start):
                    yield int(entry.name), word[len(start) :].decode(errors="replace")


def _works_below(pid: int, folder: Path) -> bool:
    """Whether a process has its place below a folder, or a path there among its arguments."""
    try:
        entry = Path("/proc") / str(pid)
        place, words = (entry / "cwd").readlink(), (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return not Path("/proc/self/environ").exists() and _works_below_by_psutil(pid, folder)
    return place.is_relative_to(folder) or any(f"{folder}/" in word for word in words)


def _environ(entry: Path) -> bytes:
    try:
        return (entry / "environ").read_bytes()
    except OSError:
        return b""


def _pids_by_psutil(label: str) -> Iterator[int]:
    import psutil

    name, _, value = label.partition("=")
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value:
                yield process.pid


def _carrying_by_psutil(name: str) -> Iterator[tuple[int, str]]:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (value := process.environ().get(name)) is not None:
                yield process.pid, value


def _works_below_by_psutil(pid: int, folder: Path) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return Path(process.cwd()).is_relative_to(folder) or any(f"{folder}/" in word for word in process.cmdline())
    return False


def _signal(process: Process, number: signal.Signals) -> None:
    if started_at(process.pid) == process.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) else None
