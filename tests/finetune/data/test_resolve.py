"""The written rules by which every `auto` becomes a number."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.config import Hyperparameters
from finetune.data.resolve import auto_batch, auto_epochs, auto_learning_rate, resolve

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("n", "epochs"),
    [(1, 8), (10, 8), (62, 8), (63, 8), (71, 8), (72, 7), (128, 4), (250, 2), (499, 2), (500, 1), (10**7, 1)],
)
def test_few_examples_are_seen_more_often(n: int, epochs: int) -> None:
    assert auto_epochs(n) == epochs


@pytest.mark.parametrize(
    ("n", "batch"), [(1, 1), (32, 1), (63, 1), (64, 2), (127, 2), (128, 4), (511, 8), (512, 16), (10**7, 16)]
)
def test_the_automatic_batch_is_a_power_of_two_not_above_a_32nd(n: int, batch: int) -> None:
    assert auto_batch(n) == batch


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(135_000_000, 1e-3), (999_999_999, 1e-3), (10**9, 5e-4), (3_900_000_000, 5e-4), (4 * 10**9, 2e-4)],
)
def test_larger_models_take_smaller_steps(parameters: int, rate: float) -> None:
    assert auto_learning_rate(parameters) == rate


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"learning_rate_multiplier": 2}, {"learning_rate": 2e-3, "learning_rate_multiplier": 2.0}),
        ({"learning_rate_multiplier": 2, "learning_rate": 3e-5}, {"learning_rate": 3e-5}),
        ({"batch_size": 8, "n_epochs": 3}, {"total_steps": 39, "eval_steps": 13, "save_steps": 4}),
        ({"batch_size": 8, "gradient_accumulation_steps": 4, "n_epochs": 3}, {"total_steps": 12, "save_steps": 2}),
        ({"batch_size": 256, "n_epochs": 1}, {"total_steps": 1, "save_steps": 1, "eval_steps": 1}),
        ({"save_steps": 7, "eval_steps": 9}, {"save_steps": 7, "eval_steps": 9}),
    ],
)
def test_what_the_user_gives_is_kept_and_the_steps_follow(given: dict[str, Any], expected: dict[str, Any]) -> None:
    found = resolve(Hyperparameters(**given), n_examples=100, parameters=10**8)
    assert found | expected == found


def test_all_weights_and_preferences_take_smaller_steps() -> None:
    assert auto_learning_rate(10**8, "qlora") == 1e-3
    assert auto_learning_rate(10**8, "full") == pytest.approx(5e-5)
    assert auto_learning_rate(10**8, "lora", "dpo") == pytest.approx(5e-5)
    assert auto_learning_rate(8 * 10**9, "full", "dpo") == pytest.approx(5e-7)


def test_beta_is_for_preferences_alone() -> None:
    for asked, beta in ((None, 0.1), ("auto", 0.1), (0.3, 0.3)):
        found = resolve(Hyperparameters(beta=asked), n_examples=10, parameters=1, method="dpo")
        assert (found["method"], found["beta"]) == ("dpo", beta)
    assert resolve(Hyperparameters(), n_examples=10, parameters=1)["beta"] is None
