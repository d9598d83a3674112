"""What progress lines tell about a training that was killed and taken up again."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.train.history import last_evaluation, lineage, metrics_csv, spent

pytestmark = pytest.mark.unit


def step(number: int, loss: float, seconds: float) -> dict[str, Any]:
    return {"event": "step", "step": number, "loss": loss, "seconds": seconds, "cpu_seconds": 2 * seconds, "tokens": 10}


def evaluation(number: int, loss: float) -> dict[str, Any]:
    return {"event": "evaluation", "step": number, "valid_loss": loss, "valid_mean_token_accuracy": 0.5, "seconds": 1.0}


KILLED = [
    {"event": "start", "resumed_from": None},
    step(1, 3.0, 1.0),
    {"event": "checkpoint", "step": 1, "seconds": 1.1},
    step(2, 2.0, 2.0),
    evaluation(2, 9.0),
    step(3, 1.5, 3.0),
    {"event": "start", "resumed_from": 1},
    step(2, 2.0, 4.0),
    evaluation(2, 1.0),
]


def test_only_the_steps_that_led_to_the_last_one_count() -> None:
    assert [(line["event"], line["step"]) for line in lineage(KILLED)] == [("step", 1), ("step", 2), ("evaluation", 2)]


def test_a_start_from_nothing_forgets_all_before_it() -> None:
    assert lineage([*KILLED, {"event": "start", "resumed_from": None}]) == []


def test_metrics_hold_each_step_once_with_the_validation_beside_it() -> None:
    assert metrics_csv(KILLED).splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,learning_rate,grad_norm,tokens,seconds",
        "1,3.0,,,,,,10,1.0",
        "2,2.0,,1.0,0.5,,,10,1.0",
    ]


def test_lost_steps_cost_time_all_the_same() -> None:
    assert spent(KILLED) == (4.0, 8.0)


def test_the_last_validation_is_that_of_the_lineage() -> None:
    assert last_evaluation(KILLED[:-1]) == (None, None)
    assert last_evaluation(KILLED) == (1.0, 0.5)
