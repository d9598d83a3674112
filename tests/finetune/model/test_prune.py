"""Pruning the cache: the longest unused goes first, and never what somebody makes, reads or has just asked for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from finetune.model import cache, prune

pytestmark = pytest.mark.unit

KILO = 1000


def thing(folder: Path, place: str, hours: float, size: int = KILO) -> Path:
    """A thing of the cache that was used so many hours ago."""
    path = folder / place
    path.mkdir(parents=True)
    (path / "object").write_bytes(bytes(size))
    (path / "object").chmod(0o444)
    os.utime(path, (time.time() - hours * 3600,) * 2)
    return path


def gone(folder: Path, limit: int, **more: object) -> list[str]:
    removed = prune.prune(folder, prune.SHARED, limit, **more)  # type: ignore[arg-type]
    return [one.path.relative_to(folder).as_posix() for one in removed]


def test_the_longest_unused_goes_first_and_no_more_than_needed(tmp_path: Path) -> None:
    for place, hours in (("datasets/b", 5), ("prepared/a", 9), ("datasets/c", 3)):
        thing(tmp_path, place, hours)
    assert gone(tmp_path, 2 * KILO) == ["prepared/a"]
    assert gone(tmp_path, 0) == ["datasets/b", "datasets/c"]
    assert prune.size(tmp_path, prune.SHARED) == 0


def test_what_was_used_a_moment_ago_stays_whatever_its_size(tmp_path: Path) -> None:
    cache.touch(thing(tmp_path, "datasets/a", 9))
    assert gone(tmp_path, 0) == []


def test_what_somebody_is_making_or_placing_stays(tmp_path: Path) -> None:
    kept = thing(tmp_path, "prepared/a", 9)
    with cache.locked(tmp_path, "prepared a"):
        assert gone(tmp_path, 0) == []
    assert kept.is_dir()
    assert gone(tmp_path, 0) == ["prepared/a"]


def test_a_base_stays_while_a_link_leads_to_it(tmp_path: Path) -> None:
    base, link = thing(tmp_path, f"models/{'a' * 40}", 9), tmp_path / "task" / "base"
    link.parent.mkdir()
    cache.link(base, link)
    assert cache.hold(tmp_path, base, link)
    assert gone(tmp_path, 0) == []
    assert gone(tmp_path, 0, living=lambda link: "task" not in link.parts) == [f"models/{'a' * 40}"]
    assert not cache.hold(tmp_path, base, link), "whoever asks now learns that it is gone"


def test_a_base_whose_links_are_gone_may_go(tmp_path: Path) -> None:
    base, link = thing(tmp_path, f"models/{'b' * 64}", 9), tmp_path / "base"
    cache.link(base, link)
    cache.hold(tmp_path, base, link)
    link.unlink()
    assert gone(tmp_path, 0) == [f"models/{'b' * 64}"]


def test_a_dry_run_tells_and_removes_nothing(tmp_path: Path) -> None:
    kept = thing(tmp_path, "datasets/a", 9)
    assert gone(tmp_path, 0, dry_run=True) == ["datasets/a"]
    assert kept.is_dir()
