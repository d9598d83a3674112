"""The parent of one Nextflow: `python -I -S shim.py ORDER.json`. Lives on when the worker dies, and writes down how the child ended.

Standard library only, for it starts alone. Its folder holds `handle.json` (who it is; made once, so of two launches in one
folder only one starts), `head.json` (the child) and at the end `exit.json`. Touches no other file, and ends when somebody puts `end`
there: a worker of another machine, which shares the disk, goes on with the run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

PATROL_SECONDS = 5.0
TERM_GRACE_SECONDS = 25.0
"""Twice this and a patrol stay below the minute that lies between the end of a silent worker's run and its takeover elsewhere."""


def started_at(pid: int) -> str | None:
    """When a process started, in whatever unit the system has: clock ticks since boot on Linux.

    Returns:
        None when there is no such process, or only its remains (a zombie). Equal pid and start mean the same process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if Path("/proc/self/stat").exists() else _started_at_by_ps(pid)
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _started_at_by_ps(pid: int) -> str | None:
    said = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return said[1].strip() if len(said) == 2 and not said[0].startswith("Z") else None


def namespace() -> str:
    """Which numbering of processes this one lives in: the inode of its PID namespace; `host` where there are none."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "host"


def write_once(path: Path, content: dict[str, Any]) -> bool:
    """Make a whole file, unless it is there already: of two writers one wins.

    Returns:
        Whether this call made it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content) + "\n", encoding="utf-8")
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


def main() -> None:
    """Detach, record who this is, run the child, record how it ended."""
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    reader, writer = os.pipe()
    if os.fork():  # the worker waits for this one only: the shim is nobody's child, and leaves no zombie
        os.close(writer)
        os.read(reader, 1)  # returns when the child runs, or when there will be none
        os._exit(0)
    os.setsid()
    folder = Path(order["folder"])
    try:
        if write_once(folder / "handle.json", _myself(order["boot_id"])):
            _run(order, folder, writer)
    except BaseException as problem:  # whatever it was, the worker must learn that nothing runs here
        write_once(folder / "exit.json", {"status": None, "error": str(problem), "time": time.time()})
        raise


def _myself(boot_id: str) -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "started": started_at(pid), "boot_id": boot_id, "pid_namespace": namespace()}


def _run(order: dict[str, Any], folder: Path, running: int) -> None:
    asked: list[int] = []
    wake = _wake_on_signals(asked)
    with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
        child = subprocess.Popen(order["argv"], cwd=order["cwd"], stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    write_once(folder / "head.json", {"pid": child.pid, "started": started_at(child.pid)})
    os.close(running)
    patrol, forwarded, lost = Patrol(Path(order["lease"]), folder / "end"), 0, False
    while child.poll() is None:
        select.select([wake], [], [], PATROL_SECONDS)
        _drain(wake)
        if len(asked) > forwarded:
            forwarded = len(asked)
            child.terminate()
        if patrol.must_end():
            lost = True
            _end(child)
    write_once(
        folder / "exit.json", {"status": child.returncode, "asked": bool(asked), "lost": lost, "time": time.time()}
    )
    if lost:
        time.sleep(TERM_GRACE_SECONDS)  # the tasks were asked to end when the child was; they may be saving
        os.killpg(0, signal.SIGKILL)


def _wake_on_signals(asked: list[int]) -> int:
    """Note TERM, INT and HUP in `asked`, and wake whoever selects on the pipe returned, also when the child ends."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return reader


def _drain(reader: int) -> None:
    try:
        while os.read(reader, 512):
            pass
    except BlockingIOError:
        return


class Patrol:
    """Watches the file that the worker touches while its lease holds.

    Args:
        lease: Holds `{"others": whether another worker host lived, "end_after": seconds}` as of the last touch.
        end: Is there when the run is another's.
    """

    def __init__(self, lease: Path, end: Path) -> None:
        self._lease = lease
        self._end = end
        self._touched = 0.0
        self._seen = time.monotonic()  # the machine's wall clock may jump

    def must_end(self) -> bool:
        """Whether another host has taken over, or may since the worker was silent for long; never when there was no other host."""
        if self._end.exists():
            return True
        try:
            said = json.loads(self._lease.read_text(encoding="utf-8"))
            touched = self._lease.stat().st_mtime
        except (OSError, ValueError):
            return False
        if touched != self._touched:
            self._touched, self._seen = touched, time.monotonic()
        return bool(said["others"]) and time.monotonic() - self._seen > float(said["end_after"])


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(TERM_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    main()
