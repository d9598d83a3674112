"""Folders of the cache that know their content: what was written is summed up, and looked at again before it is used."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path

from finetune.model.cache import file_sha256
from finetune.progress import write_atomic

SUMS = "sums.json"
"""The sha256 of every file beside it, by name. It stays in the cache."""


def seal(folder: Path) -> None:
    """Sum up a folder's files, and take the right to write from them: tasks get hard links to them."""
    sums = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    write_atomic(folder / SUMS, json.dumps(sums, sort_keys=True) + "\n")
    for path in folder.iterdir():
        path.chmod(0o444)


def intact(folder: Path) -> bool:
    """Whether a folder is there and holds what it was sealed with; one that holds anything else is removed."""
    if not folder.is_dir():
        return False
    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        found = {path.name: file_sha256(path) for path in folder.iterdir() if path.name != SUMS}
    except (OSError, ValueError):
        sums, found = None, {}
    if sums == found:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def place(kept: Path, target: Path) -> None:
    """Have the files of a sealed folder in `target` too: by hard links, or copies where the file system has none."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(kept.iterdir()):
        if path.name == SUMS:
            continue
        try:
            (target / path.name).hardlink_to(path)
        except OSError:
            shutil.copyfile(path, target / path.name)


@functools.cache
def code_sha256() -> str:
    """sha256 over the source of this package: what other code made is not taken for what this code would make."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
