"""One part of the embedded service as a process: started in a group of its own, tied to this process, found again, ended.

On Linux a part gets its stop signal from the kernel when this process dies by kill -9; elsewhere, and to be sure, the next
start finds what is left over by the record below `<state>/pids/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.embedded import child
from app.nextflow.shim import started_at

CLI = str(Path(sys.executable).with_name("llamaflow"))
"""The command line of this environment."""
LOG_KEPT_BYTES = 20 << 20
POLL_SECONDS = 0.02


class PartError(RuntimeError):
    """A part did not start; says which, why, and where its log is."""


@dataclass(frozen=True)
class User:
    """An unprivileged user for a part of a service that runs as root. passing: it must pass folders closed to it."""

    uid: int
    gid: int
    passing: bool


@dataclass
class Part:
    """A running part.

    Attributes:
        name: Also of its log and its record.
        process: Leader of its own session and process group.
        stop_signal: Asks it to end in good order.
        log: Where its output goes.
        record: Tells a later start who this was.
    """

    name: str
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    log: Path
    record: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def ask(self) -> None:
        """Ask it to end, and do not wait."""
        if self.alive:
            self.process.send_signal(self.stop_signal)

    def stop(self, grace: float = 10.0) -> bool:
        """Ask it to end, wait, then end its whole group by force.

        Returns:
            Whether it ended by itself.
        """
        self.ask()
        return self.finish(grace)

    def finish(self, grace: float) -> bool:
        """Wait for one that was asked, then end its whole group by force; whether it ended by itself."""
        try:
            self.process.wait(grace)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()

    def kill(self) -> None:
        """End its group with SIGKILL, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.record.unlink(missing_ok=True)

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return log_tail(self.log, lines)


def start(
    name: str,
    argv: list[str],
    *,
    state: Path,
    env: dict[str, str],
    stop_signal: signal.Signals = signal.SIGTERM,
    death_signal: signal.Signals | None = None,
    user: User | None = None,
    instead: bool = True,
) -> Part:
    """Start a part; one of the same name that was left over is ended first.

    Args:
        name: Of its log `<state>/logs/<name>.log` and its record `<state>/pids/<name>.json`.
        argv: The program, by its absolute path, and its arguments.
        state: The state folder.
        env: Its whole environment.
        stop_signal: Asks it to end.
        death_signal: Sent by the kernel when this process dies; default: stop_signal.
        user: Become this user first.
        instead: False leaves a left-over one alone.
    """
    record = state / "pids" / f"{name}.json"
    if instead:
        end_left_over(record, death_signal or stop_signal)
    log = state / "logs" / f"{name}.log"
    for path in (record, log):
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    _keep_short(log)
    order = {"parent": os.getpid(), "death_signal": int(death_signal or stop_signal)}
    if user is not None:
        order |= {"user": user.uid, "group": user.gid, "passing": user.passing}
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", child.__file__, json.dumps(order), *argv],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd=state, start_new_session=True,
        )  # fmt: skip
    record.write_text(
        json.dumps({"pid": process.pid, "started": started_at(process.pid), "argv": argv}), encoding="utf-8"
    )
    return Part(name, process, stop_signal, log, record)


def end_left_over(record: Path, stop_signal: signal.Signals, grace: float = 15.0) -> bool:
    """End the process a record tells of, if it still runs: its supervisor was killed.

    Returns:
        Whether there was one.
    """
    try:
        made = json.loads(record.read_text(encoding="utf-8"))
        pid, started, argv = int(made["pid"]), made["started"], list(made["argv"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not is_that(pid, argv) or started_at(pid) != started:
        record.unlink(missing_ok=True)
        return False
    end_process(pid, stop_signal, grace)
    record.unlink(missing_ok=True)
    return True


def is_that(pid: int, argv: list[str]) -> bool:
    """Whether the process runs this command line (or is about to: the launcher carries it too)."""
    try:
        return psutil.Process(pid).cmdline()[-len(argv) :] == argv
    except psutil.Error:
        return False


def end_process(pid: int, stop_signal: signal.Signals, grace: float) -> None:
    """Ask a process to end, wait, then end its group by force. It need not be our child."""
    began = started_at(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, stop_signal)
    deadline = time.monotonic() + grace
    while began is not None and started_at(pid) == began:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL) if os.getpgid(pid) == pid else os.kill(pid, signal.SIGKILL)
            deadline += grace
        time.sleep(POLL_SECONDS)


def log_tail(log: Path, lines: int) -> str:
    """The last lines of a log file; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 200 * lines))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _keep_short(log: Path) -> None:
    """Set an old log aside when it has grown long; one is kept."""
    if log.exists() and log.stat().st_size > LOG_KEPT_BYTES:
        log.replace(log.with_suffix(".log.1"))
