"""The train/ folder: whole checkpoints only, one training at a time, and what control.json asks."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.train.folder import TrainFolder, step_of

pytestmark = pytest.mark.unit

HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"


def checkpoint(folder: TrainFolder, step: int, *, whole: bool = True) -> Path:
    path = folder.path / f"checkpoint-{step}"
    path.mkdir()
    if whole:
        (path / "trainer_state.json").write_text("{}")
    return path


def test_half_checkpoints_are_not_taken_for_checkpoints(tmp_path: Path) -> None:
    folder = TrainFolder(tmp_path)
    checkpoint(folder, 2), checkpoint(folder, 10), checkpoint(folder, 11, whole=False)
    with contextlib.suppress(OSError), folder.making("checkpoint-12") as beside:
        (beside / "trainer_state.json").write_text("{}")
        raise OSError("the disk is full")
    assert [step_of(path) for path in folder.checkpoints()] == [2, 10]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = TrainFolder(tmp_path)
    for step in (1, 2, 10, 9):
        checkpoint(folder, step)
    folder.keep(2)
    assert [path.name for path in sorted(tmp_path.glob("*"))] == ["checkpoint-10", "checkpoint-9"]


def test_another_training_is_put_aside_whole(tmp_path: Path) -> None:
    folder = TrainFolder(tmp_path)
    folder.claim("old")
    checkpoint(folder, 3)
    folder.claim("old")
    assert folder.checkpoints()
    folder.claim("new")
    assert not folder.checkpoints()
    assert (tmp_path / "previous" / "checkpoint-3" / "trainer_state.json").is_file()
    assert (tmp_path / "train_key").read_text() == "new\n"


@pytest.mark.parametrize(
    ("text", "intent"),
    [
        ('{"intent": "pause"}', "pause"),
        ('{"intent": "stop"}', "stop"),
        ('{"intent": "x"}', None),
        ("[", None),
        ("[]", None),
    ],
)
def test_control_asks_for_what_it_says_and_nothing_else(tmp_path: Path, text: str, intent: str | None) -> None:
    folder = TrainFolder(tmp_path)
    assert folder.intent() is None
    (tmp_path / "control.json").write_text(text)
    assert folder.intent() == intent
    folder.obeyed()
    assert folder.intent() is None


def test_the_lock_is_free_once_its_holder_is_killed(tmp_path: Path) -> None:
    folder = TrainFolder(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "owner.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with (tmp_path / "owner.lock").open("a") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    with folder.owned():
        assert (tmp_path / "owner.lock").read_text() == f"{os.getpid()}\n"
    holder.communicate()


def test_metrics_of_a_training_that_told_nothing_are_a_header(tmp_path: Path) -> None:
    folder = TrainFolder(tmp_path)
    folder.write_metrics()
    assert (tmp_path / "metrics.csv").read_text().startswith("step,train_loss")
    (tmp_path / "result.json").write_text(json.dumps({"half": True}))
    assert folder.result() is None
