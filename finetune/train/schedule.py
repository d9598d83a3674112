"""The learning rate's course: rises in a straight line, then falls as asked. Pure arithmetic."""

from __future__ import annotations

import math
from typing import Literal


def warmup_steps(total_steps: int, warmup_ratio: float) -> int:
    """Steps in which the learning rate rises."""
    return min(total_steps, math.ceil(total_steps * warmup_ratio))


def factor(step: int, *, total_steps: int, warmup_ratio: float, kind: Literal["cosine", "linear", "constant"]) -> float:
    """What the learning rate is multiplied by.

    The first step already learns and so does the last: no step is spent at a rate of 0.

    Args:
        step: 0-based.
        total_steps: Of the whole training.
        warmup_ratio: Share of the steps in which it rises, 0-1.
        kind: How it goes on after that.
    Returns:
        0-1.
    """
    warmup = warmup_steps(total_steps, warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return 1.0 - done if kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
