"""The quality gate: whether the candidate is good enough, and better than what it is compared with, on the same rows. No torch.

Point estimates decide: at least `min`, and better by more than `min_delta`. The interval of the difference is a paired
bootstrap over rows (Efron and Tibshirani 1993, chapter 16), seeded; it decides too where `confidence` asks for it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from finetune.config import Gate
from finetune.evaluate.scores import Floats, Rows
from finetune.steps import GateResult, Parent

TURNS = 2000
DRAWN = 1 << 20
"""Rows drawn at once."""
REPORTED = 0.95
LOWER_IS_BETTER = frozenset({"loss"})

Scores = dict[str, Rows]


def decide(
    gate: Gate, candidate: Scores, base: Scores, current: Scores | None, version: Parent | None, seed: int
) -> GateResult:
    """Compare.

    Args:
        gate: What was asked.
        candidate: Metric → its rows, of what was trained; at least the gate's.
        base: The same of the base, on the same rows.
        current: The same of the promoted version; None where there is none, or it was left out.
        version: Which version that is.
        seed: Of the bootstrap.
    """
    compared_with: Literal["base", "current"] = (
        "current" if gate.better_than == "current" and current is not None else "base"
    )
    other = base if current is None or compared_with == "base" else current
    mine, theirs = candidate[gate.metric], other[gate.metric]
    scored = {"candidate": candidate, "base": base} | ({} if current is None else {"current": current})
    asked = gate.model_dump(include={"metric", "better_than", "min", "min_delta", "confidence"})
    told = GateResult(
        **asked,
        rows=len(mine),
        compared_with=compared_with,
        current=version,
        scores={name: {metric: rows.value for metric, rows in found.items()} for name, found in scored.items()},
        passed=False,
        reason=f"no held-out row has what {gate.metric} needs: a question and an answer",
    )
    if len(mine) == 0:
        return told
    sign = -1.0 if gate.metric in LOWER_IS_BETTER else 1.0
    draws, difference = sign * bootstrap(mine, theirs, seed), sign * (mine.value - theirs.value)
    low, high = interval(draws, REPORTED)
    bound = None if gate.confidence is None else interval(draws, gate.confidence)[0]
    passed, reason = _judged(gate, mine.value, theirs.value, difference, bound)
    found = {"difference": difference, "interval": (low, high), "bound": bound, "passed": passed, "reason": reason}
    return told.model_copy(update=found)


def bootstrap(mine: Rows, theirs: Rows, seed: int, turns: int = TURNS) -> Floats:
    """Differences of the two values when rows are drawn with replacement, the same rows for both.

    Args:
        mine, theirs: The same rows, by two models; n of them, at least one.
        seed: Equal seeds give equal draws.
        turns: How often it is drawn.
    Returns:
        Shape (turns,).
    """
    n, rng = len(mine), np.random.default_rng(seed)
    found = []
    together = max(1, DRAWN // n)
    for begin in range(0, turns, together):
        drawn = rng.integers(0, n, size=(min(together, turns - begin), n))
        values = [
            rows.totals[drawn].sum(1) / np.maximum(rows.weights[drawn].sum(1), np.finfo(np.float64).tiny)
            for rows in (mine, theirs)
        ]
        found.append(values[0] - values[1])
    return np.concatenate(found)


def interval(draws: Floats, level: float) -> tuple[float, float]:
    """The middle `level` of the draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def nothing_held_out(gate: Gate, version: Parent | None) -> GateResult:
    """What is found where no row was left to compare on."""
    asked = gate.model_dump(include={"metric", "better_than", "min", "min_delta", "confidence"})
    return GateResult(
        **asked, rows=0, compared_with="base", current=version, passed=False, reason="nothing was held out to compare on"
    )  # fmt: skip


def _judged(gate: Gate, mine: float, theirs: float, difference: float, bound: float | None) -> tuple[bool, str]:
    """Whether it passes, and why, as the end of a sentence."""
    name = gate.metric
    if gate.min is not None and mine < gate.min:
        return False, f"{name} {mine:.4g} is below the {gate.min:.4g} asked for"
    if not difference > gate.min_delta:
        by = f", by {difference:.4g} and not by more than {gate.min_delta:.4g}" if difference > 0 else ""
        tie = "the same as" if difference == 0 else "compared with"
        return False, f"{name} {mine:.4g} {tie} {theirs:.4g}{by}"
    if bound is not None and not bound > gate.min_delta:
        told = f"{name} {mine:.4g} compared with {theirs:.4g}, but at {gate.confidence:.0%} the difference may be {bound:.4g}"
        return False, told
    return True, f"{name} {mine:.4g} {'<' if name in LOWER_IS_BETTER else '>'} {theirs:.4g}"
