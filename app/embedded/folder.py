"""The state folder's small files: secrets that are made once, ports that are kept."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"


def prepare(state: Path) -> Path:
    """The state folder, absolute and made. Others may pass it (Postgres runs as another user under root), not list it."""
    state = state.resolve()
    state.mkdir(mode=0o711, parents=True, exist_ok=True)
    return state


def write_secret(path: Path, text: str) -> None:
    """Write a file only its owner may read, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


def keep(path: Path, make: Callable[[], str]) -> str:
    """The secret in a 0600 file, made at first; one line."""
    try:
        if kept := path.read_text(encoding="utf-8").strip():
            return kept
    except FileNotFoundError:
        pass
    made = make()
    write_secret(path, made + "\n")
    return made


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether somebody could listen on a port now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = LOOPBACK, kept: int | None = None) -> int:
    """The kept port if it is free, else some free one."""
    if kept is not None and is_free(kept, host):
        return kept
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no whole one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
