"""The trainer's lines as what a user reads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.worker.training import tell

pytestmark = pytest.mark.unit


def step(number: int, time: float, **more: Any) -> dict[str, Any]:
    return {
        "event": "step", "time": time, "step": number, "total_steps": 120, "epoch": number / 60, "loss": 0.831,
        "train_accuracy": 0.7, "learning_rate": 1e-3, "tokens": 50 * number, "tokens_per_second": 200.0,
        "eta_seconds": 30.0,
    } | more  # fmt: skip


def test_a_step_is_told_in_the_words_of_the_client() -> None:
    (note,) = tell([step(40, 100.0)], {}).notes
    assert (note.kind, note.message) == ("metrics", "Step 40/120: training loss 0.83")
    assert note.data["train_loss"] == 0.831
    assert note.data["train_mean_token_accuracy"] == 0.7
    assert note.data["total_steps"] == 120


def test_rewards_are_told_where_preferences_are_trained() -> None:
    rewards = {"rewards_margin": 0.3, "rewards_accuracy": 0.75}
    held_out = {"event": "evaluation", "time": 102.0, "step": 41, "valid_loss": 0.6, **rewards}
    for note in tell([step(40, 100.0, **rewards), held_out], {}).notes:
        assert note.data["rewards_margin"] == 0.3
        assert note.data["rewards_accuracy"] == 0.75


def test_at_most_one_metrics_note_a_second_and_always_the_last() -> None:
    lines = [step(number, 100 + number / 10) for number in range(1, 36)]
    told = tell([*lines, {"event": "end", "status": "succeeded", "step": 35}], {}).notes
    assert [note.data["step"] for note in told] == [1, 11, 21, 31, 35]


def test_the_last_step_is_told_although_no_end_was_written() -> None:
    story = tell([step(1, 100.0), step(2, 100.1)], {})
    assert [note.data["step"] for note in story.notes] == [1]
    assert [note.data["step"] for note in tell([], story.state, over=True).notes] == [2]


@pytest.mark.parametrize("cut", range(7))
def test_a_worker_that_adopts_tells_exactly_what_is_missing(cut: int) -> None:
    lines: list[dict[str, Any]] = [{"event": "start", "time": 99.0, "total_steps": 120}]
    lines += [
        step(1, 100.0),
        step(2, 100.5),
        {"event": "checkpoint", "time": 100.6, "step": 2},
        step(3, 100.9),
        step(4, 102.0),
    ]
    whole = tell(lines, {}, over=True)
    first = tell(lines[:cut], {})
    second = tell(lines[cut:], json.loads(json.dumps(first.state)), over=True)
    assert first.notes + second.notes == whole.notes


def test_progress_is_that_of_the_last_step() -> None:
    assert tell([step(30, 1.0), step(60, 1.1)], {}).progress == {
        "step": 60, "total_steps": 120, "percent": 50.0, "eta_seconds": 30.0, "tokens_per_second": 200.0,
    }  # fmt: skip


def test_start_resume_checkpoint_and_evaluation_have_their_sentences() -> None:
    lines = [
        {"event": "start", "total_steps": 120, "resumed_from": None},
        {"event": "start", "total_steps": 120, "resumed_from": 40},
        {"event": "checkpoint", "step": 40, "path": "/secret/place", "train_loss": 0.5},
        {"event": "evaluation", "step": 40, "valid_loss": 0.91, "valid_mean_token_accuracy": 0.8},
    ]
    notes = tell(lines, {}).notes
    assert [note.message for note in notes] == [
        "Training started: 120 steps",
        "Training goes on from step 40 of 120",
        "Checkpoint saved at step 40",
        "Step 40: validation loss 0.91",
    ]
    assert notes[2].data == {"step": 40, "train_loss": 0.5}


def test_lines_of_another_kind_say_nothing() -> None:
    assert (
        tell([{"event": "future"}, {"no": "event"}, step(1, 1.0, loss=None)], {})
        .notes[0]
        .message.endswith("is not a number")
    )
