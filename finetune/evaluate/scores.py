"""Metrics of answers and of tokens, row by row, so that two models can be compared on the same rows. No torch.

A metric's value is the sum of its totals by the sum of its weights: of an answer the weight is 1, of a loss the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """A metric by row.

    Attributes:
        totals: Shape (n,).
        weights: Shape (n,), not negative.
    """

    totals: Floats
    weights: Floats

    @property
    def value(self) -> float:
        """The metric over all rows; 0 if there are none."""
        weight = float(self.weights.sum())
        return float(self.totals.sum()) / weight if weight else 0.0

    def __len__(self) -> int:
        return len(self.totals)


def of_answers(scores: Sequence[float]) -> Rows:
    """Answers count alike."""
    return Rows(np.asarray(scores, dtype=np.float64), np.ones(len(scores)))


def exact_match(wanted: Sequence[str], answers: Sequence[str]) -> Rows:
    """1 for each answer that is what was wanted, blanks around them aside; else 0."""
    return of_answers([float(said.strip() == want.strip()) for want, said in zip(wanted, answers, strict=True)])


def contains(wanted: Sequence[str], answers: Sequence[str]) -> Rows:
    """1 for each answer in which what was wanted stands, whatever its case; else 0."""
    pairs = zip(wanted, answers, strict=True)
    return of_answers([float(want.strip().casefold() in said.casefold()) for want, said in pairs])


def chrf(wanted: Sequence[str], answers: Sequence[str]) -> Rows:
    """chrF2 of each answer, between 0 and 1: character n-grams (Popović 2015, aclanthology.org/W15-3049), by sacrebleu.

    The value is the mean over answers, not the corpus score: only so can rows be drawn in pairs.
    """
    from sacrebleu.metrics.chrf import CHRF

    scorer: Any = CHRF()
    pairs = zip(wanted, answers, strict=True)
    return of_answers([float(scorer.sentence_score(said, [want]).score) / 100 for want, said in pairs])


OF_ANSWERS: dict[str, Callable[[Sequence[str], Sequence[str]], Rows]] = {
    "exact_match": exact_match,
    "contains": contains,
    "chrf": chrf,
}
"""Metrics for which held-out questions are answered."""
OF_TOKENS = ("loss", "token_accuracy")
"""Metrics for which held-out answers are read."""
