"""One GPU for each step that computes: those of one machine share its GPUs without being told of each other.

A step holds a lock file of its GPU while it lives. The kernel gives the lock back when the process ends, however it ends,
so nothing is to be counted, renewed or cleaned up, and a run that another worker took over keeps what it has.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

_held: dict[str, int] = {}
"""File descriptor by GPU: open until the process ends."""


def listed(dev: Path = Path("/dev")) -> list[str]:
    """The NVIDIA GPUs given to this machine or container, by their numbers. Asks no driver and loads no library."""
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in dev.glob("nvidia*"))
    return [str(number) for number in sorted(int(match[1]) for match in found if match)]


def own(names: Sequence[str]) -> str:
    """A GPU that no other step has; where all are taken, any of them. The same one each time it is asked for.

    Args:
        names: GPUs to choose from, by the machine's own numbers or UUIDs; at least one.
    """
    for name in names:
        if name in _held:
            return name
        if (descriptor := _lock(name)) is not None:
            _held[name] = descriptor
            return name
    return names[os.getpid() % len(names)]


def _lock(name: str) -> int | None:
    """The open lock file of a GPU, if nobody holds it. A file of another user that cannot be opened counts as held."""
    safe = re.sub(r"[^A-Za-z0-9-]", "_", name)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(Path(tempfile.gettempdir()) / f"llamaflow-gpu-{safe}.lock", flags, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
