"""Keeps the content-addressed cache below a size: what was not used for longest goes first, and never what somebody reads.

Takes the lock under which a step makes or finds a thing. A dataset and tokens are safe once that lock is free, for
tasks have hard links or copies of their own; a base is held by the links that lead to it (`cache.hold`). No network, no torch.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.model import cache as cached

LOCKS = {"models": "model", "datasets": "dataset", "tokens": "tokens", "prepared": "prepared", "adapters": "adapter"}
"""Folder of the cache → the word before the name in the lock of a thing in it."""
SHARED = ("models", "datasets", "tokens", "prepared")
RECENT_SECONDS = 3600.0
"""What was used so lately stays: an engine may just be loading it."""


@dataclass(frozen=True)
class Thing:
    """One thing of the cache: a folder, its bytes, and when it was used last (seconds since the epoch)."""

    path: Path
    size: int
    used: float


def prune(
    cache: Path,
    kinds: tuple[str, ...],
    limit: int,
    *,
    living: Callable[[Path], bool] = lambda _link: True,
    kept: frozenset[str] = frozenset(),
    dry_run: bool = False,
) -> list[Thing]:
    """Remove the longest unused things until the rest is no larger than `limit`.

    Args:
        cache: The cache's folder.
        kinds: Which of its folders, names of `LOCKS`.
        limit: Bytes they may have together.
        living: Whether a link that leads to a base is one that somebody will follow.
        kept: Names of things that stay: somebody reads them whose links cannot be seen from here.
        dry_run: Only tell what would go.
    Returns:
        What was removed.
    """
    things = sorted((thing for kind in kinds for thing in _things(cache / kind)), key=lambda thing: thing.used)
    total, removed = sum(thing.size for thing in things), []
    for thing in things:
        if total <= limit or time.time() - thing.used < RECENT_SECONDS:
            break
        if thing.path.name not in kept and _remove(cache, thing, living, dry_run=dry_run):
            total -= thing.size
            removed.append(thing)
    return removed


def size(cache: Path, kinds: tuple[str, ...]) -> int:
    """Bytes of everything in these folders."""
    return sum(thing.size for kind in kinds for thing in _things(cache / kind))


def _things(folder: Path) -> Iterator[Thing]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("."):
            continue  # half made: cache.sweep's
        try:
            yield Thing(path, sum(file.stat().st_size for file in path.rglob("*")), path.stat().st_mtime)
        except FileNotFoundError:  # another one prunes too
            continue


def _remove(cache: Path, thing: Thing, living: Callable[[Path], bool], *, dry_run: bool) -> bool:
    """Remove a thing, unless somebody makes or reads it."""
    kind, name = thing.path.parent.name, thing.path.name
    with cached.locked(cache, f"{LOCKS[kind]} {name}", wait=False) as ours:
        if not ours or (kind == "models" and any(living(link) for link in cached.holders(cache, name))):
            return False
        if dry_run:
            return True
        gone = thing.path.with_name(f".gone-{name}")
        try:
            thing.path.rename(gone)  # whole or not at all: who comes now makes it anew
        except FileNotFoundError:
            return False
        if kind == "datasets":
            (cache / "sources" / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(gone, ignore_errors=True)
    shutil.rmtree(cache / "uses" / name, ignore_errors=True)
    return True
