"""The learning rate's course at its corners."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.train.schedule import factor, warmup_steps

pytestmark = pytest.mark.unit


def course(kind: str, total: int, warmup: float) -> list[float]:
    return [factor(step, total_steps=total, warmup_ratio=warmup, kind=kind) for step in range(total)]  # type: ignore[arg-type]


def test_it_rises_in_a_line_and_then_falls_as_a_cosine() -> None:
    assert course("cosine", 6, 1 / 3) == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_linear_without_warm_up_is_the_text_source_recipe() -> None:
    assert course("linear", 4, 0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_constant_stays() -> None:
    assert course("constant", 3, 0.0) == [1.0, 1.0, 1.0]


def test_a_single_step_learns_at_the_full_rate() -> None:
    assert course("cosine", 1, 0.1) == [1.0]


@settings(derandomize=True, deadline=None)
@given(kind=st.sampled_from(["cosine", "linear", "constant"]), total=st.integers(1, 300), warmup=st.floats(0, 1))
def test_no_step_is_spent_at_rate_zero_and_none_above_the_full_rate(kind: str, total: int, warmup: float) -> None:
    rates = course(kind, total, warmup)
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) == 1.0
    assert rates[: warmup_steps(total, warmup)] == sorted(rates[: warmup_steps(total, warmup)])
