"""Which examples a step takes and how a step is cut: everything once an epoch, and never over the budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.train.batches import Steps, epoch_order, micro_batches, packed

pytestmark = pytest.mark.unit

steady = settings(derandomize=True, deadline=None)


@steady
@given(n=st.integers(1, 200), size=st.integers(1, 40), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 5))
def test_every_example_is_taken_exactly_once_an_epoch(n: int, size: int, seed: int, epoch: int) -> None:
    steps = Steps(n, size, seed)
    steps.set_epoch(epoch)
    batches = list(steps)
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(batches) == len(steps)


@steady
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60), budget=st.integers(1, 200))
def test_micro_batches_hold_the_same_examples_within_the_budget(lengths: list[int], budget: int) -> None:
    widths = np.array(lengths)
    cut = micro_batches(range(len(lengths)), widths, budget)
    assert sorted(row for micro in cut for row in micro) == list(range(len(lengths)))
    assert all(len(micro) == 1 or len(micro) * widths[micro].max() <= budget for micro in cut)
    assert all(widths[earlier].min() >= widths[later].max() for earlier, later in pairwise(cut))


@steady
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60), budget=st.integers(1, 400))
def test_packed_lines_hold_every_example_once_and_are_no_longer_than_the_longest(
    lengths: list[int], budget: int
) -> None:
    widths, longest = np.array(lengths), max(lengths)
    cut = packed(range(len(lengths)), widths, budget)
    lines = [line for micro in cut for line in micro]
    assert sorted(row for line in lines for row in line) == list(range(len(lengths)))
    assert all(widths[line].sum() <= longest for line in lines)
    assert all(len(micro) == 1 or len(micro) * longest <= budget for micro in cut)
    assert len(lines) <= 2 * -(-sum(lengths) // longest)  # of two lines one is more than half full


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = epoch_order(50, seed=1, epoch=0)
    assert (first == epoch_order(50, seed=1, epoch=0)).all()
    assert (first != epoch_order(50, seed=1, epoch=1)).any()
    assert (first != epoch_order(50, seed=2, epoch=0)).any()


@steady
@given(n=st.integers(1, 40), size=st.integers(1, 10), step=st.integers(0, 60))
def test_trained_tokens_up_to_a_step_are_those_of_its_batches(n: int, size: int, step: int) -> None:
    steps = Steps(n, size, seed=3)
    trained = np.arange(1, n + 1)
    batches = []
    for epoch in range(step // len(steps) + 1):
        steps.set_epoch(epoch)
        batches += list(steps)
    assert steps.trained_before(step, trained) == sum(int(trained[batch].sum()) for batch in batches[:step])
