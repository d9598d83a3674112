"""What a part becomes before it is itself: `python -I -S child.py '{"parent": PID, …}' PROGRAM ARGUMENTS…`.

Standard library only. Ties the part's life to the supervisor's, changes the user where Postgres must not be root, then
becomes the program; no process of its own stays behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
NO_SETUID_FIXUP = 1 << 2
"""Capabilities are neither lost with the user nor left out by access(2), which Postgres asks about its own files."""
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION = 0x20080522
PASSING = (2, 1)
"""CAP_DAC_READ_SEARCH, else CAP_DAC_OVERRIDE (containers often have only that): both let a user pass closed folders."""
CANNOT = 78
"""Exit status: this process may not change its user as asked."""


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Set(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def main() -> None:
    """Read the order, prepare, become the program.

    The order: `parent`, the supervisor's pid; `death_signal`, sent by the kernel when it dies (Linux); `user` and `group`
    to become, if any; `passing`: whether that user must be able to pass folders closed to it.
    """
    order, argv = json.loads(sys.argv[1]), sys.argv[2:]
    try:
        if order.get("user") is not None:
            become(order["user"], order["group"], passing=order["passing"])
    except OSError as error:
        print(f"cannot become user {order['user']}: {error}", file=sys.stderr)
        sys.exit(CANNOT)
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, order["death_signal"])
    if os.getppid() != order["parent"]:  # it died before it could be tied to
        sys.exit(CANNOT)
    os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted


def become(user: int, group: int, *, passing: bool) -> None:
    """Become an unprivileged user for good.

    Args:
        user: Its uid.
        group: Its gid; all others are dropped.
        passing: Keep the one capability to pass folders that are closed to it (Linux).
    Raises:
        OSError: Not allowed here.
    """
    if passing:
        _prctl(PR_SET_SECUREBITS, NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(group, group, group) if sys.platform == "linux" else os.setgid(group)
    os.setresuid(user, user, user) if sys.platform == "linux" else os.setuid(user)
    if passing:
        _keep_one()


def _keep_one() -> None:
    """Drop every capability but the one to pass folders, and hand that on to the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(CAPABILITY_VERSION, 0), (_Set * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    number = next((number for number in PASSING if sets[0].permitted & 1 << number), None)
    if number is None:
        raise PermissionError(1, "no capability to pass folders of others")
    bits = 1 << number
    kept = (_Set * 2)(_Set(bits, bits, bits), _Set(0, 0, 0))
    if libc.capset(ctypes.byref(header), kept):
        raise OSError(ctypes.get_errno(), "capset")
    _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)


def _prctl(option: int, first: int, second: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


if __name__ == "__main__":
    main()
