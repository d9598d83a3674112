"""What a retried job's train/ folder is given of the old one's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.worker.seed import seed
from finetune.progress import read_lines
from finetune.train import history
from finetune.train.folder import TrainFolder, step_of

pytestmark = pytest.mark.unit


def line(event: str, step: int | None = None, **more: Any) -> str:
    return json.dumps({"event": event, "time": 1.0} | ({} if step is None else {"step": step}) | more) + "\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A training that was killed after step 5, taken up at 4, and ended after step 7, with checkpoints at 2, 4 and 6."""
    folder = tmp_path / "old"
    for step in (2, 4, 6):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(str(step))
    (folder / "checkpoint-7").mkdir()  # half written
    (folder / "train_key").write_text("key\n")
    (folder / "result.json").write_text("{}")
    told = [line("start", resumed_from=None)]
    for step in range(1, 6):
        told.append(line("step", step, loss=1 / step, seconds=step * 10.0, cpu_seconds=1.0))
        told += (
            [line("checkpoint", step, path=f"{folder}/checkpoint-{step}", seconds=step * 10.0)] if step % 2 == 0 else []
        )
    told += [
        line("start", resumed_from=4),
        line("step", 5, loss=0.2, seconds=60.0),
        line("evaluation", 5, valid_loss=0.5),
    ]
    told += [line("step", 6, loss=0.1), line("checkpoint", 6, path=f"{folder}/checkpoint-6"), line("step", 7, loss=0.0)]
    (folder / "progress.jsonl").write_text("".join([*told, line("end", 7, status="failed"), line("notice", 3)]))
    return folder


def test_the_newest_whole_checkpoint_is_handed_on_with_its_key(old: Path, tmp_path: Path) -> None:
    new = TrainFolder(tmp_path / "new")
    assert seed(old, new.path) == 6
    new.claim("key")
    assert [step_of(path) for path in new.checkpoints()] == [6]
    assert (new.checkpoints()[0] / "trainer_state.json").read_text() == "6"
    assert sorted(path.name for path in new.path.iterdir()) == ["checkpoint-6", "progress.jsonl", "train_key"]


def test_the_history_up_to_it_is_handed_on_without_the_time_it_took(old: Path, tmp_path: Path) -> None:
    new = TrainFolder(tmp_path / "new")
    seed(old, new.path)
    lines, _ = read_lines(new.progress)
    assert [row["step"] for row in history.lineage(lines) if row["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert (history.spent(lines), history.last_step(lines), history.last_evaluation(lines)[0]) == (
        (0, 0),
        (0.1, None),
        0.5,
    )
    assert [row["path"] for row in lines if row["event"] == "checkpoint"][-1] == str(new.path / "checkpoint-6")
    assert {row["event"] for row in lines} == {"start", "step", "evaluation", "checkpoint"}


def test_another_training_puts_it_aside(old: Path, tmp_path: Path) -> None:
    new = TrainFolder(tmp_path / "new")
    seed(old, new.path)
    new.claim("another key")
    assert (new.checkpoints(), new.lines()) == ([], [])


def test_what_was_broken_off_is_done_again_and_what_is_done_is_left_alone(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (new / ".making-checkpoint-6" / "half").mkdir(parents=True)
    (new / "checkpoint-6").mkdir()
    assert seed(old, new) == 6
    before = (new / "progress.jsonl").read_bytes()
    assert seed(old, new) is None
    assert (new / "progress.jsonl").read_bytes() == before


@pytest.mark.parametrize("missing", ["train_key", "checkpoint-*", "*"])
def test_without_a_checkpoint_or_its_key_there_is_nothing_to_hand_on(old: Path, tmp_path: Path, missing: str) -> None:
    new = tmp_path / "new"
    new.mkdir()
    for path in old.glob(missing):
        path.rename(tmp_path / f"gone-{path.name}")
    assert seed(old, new) is None
    assert list(new.iterdir()) == []
