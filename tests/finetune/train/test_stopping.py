"""A training that gets no better, or runs away, ends before its last step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.train.stopping import WINDOW, Patience, ran_away

pytestmark = pytest.mark.unit

steady = settings(derandomize=True, deadline=None)
falling: Callable[[int], float] = lambda step: 3.0 / (1 + step)  # noqa: E731


@pytest.mark.parametrize(
    ("losses", "gone"),
    [
        ([falling(step) for step in range(60)], False),
        ([falling(step) for step in range(40)] + [2.0] * WINDOW, False),
        ([falling(step) for step in range(40)] + [9.0] * WINDOW, True),
        ([3.0] * (WINDOW - 1) + [9.0] * WINDOW, False),
        ([3.0] * 30 + [60.0, *([3.0] * 3)], True),
        ([0.05] * 30 + [0.6] * WINDOW, False),
    ],
)
def test_a_loss_far_above_its_beginning_has_run_away(losses: list[float], gone: bool) -> None:
    assert ran_away(losses) is gone


@steady
@given(losses=st.lists(st.floats(0, 9), min_size=1, max_size=20), limit=st.integers(1, 5))
def test_patience_ends_after_so_many_validations_without_a_lower_loss(losses: list[float], limit: int) -> None:
    patience, since = Patience(limit), 0
    for step, loss in enumerate(losses, 1):
        better = patience.see(step, loss)
        assert better is (step == 1 or loss < min(losses[: step - 1]))
        since = 0 if better else since + 1
        assert patience.is_over() is (since >= limit)
    best = patience.best()
    assert best == (losses.index(min(losses)) + 1, min(losses))
