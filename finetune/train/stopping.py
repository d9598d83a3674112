"""When a training ends before its last step: it no longer gets better, or it has run away. Pure arithmetic.

Both are judged from what was told so far, so that a training that was killed and taken up again judges the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW = 10
"""Steps whose mean loss is compared."""


def ran_away(losses: Sequence[float]) -> bool:
    """Whether a training's loss has left for good: ten steps are on average half as much again, and a nat more, than the first ten.

    Args:
        losses: Of all steps so far, in order.
    """
    if len(losses) < 2 * WINDOW:
        return False
    begun, now = sum(losses[:WINDOW]) / WINDOW, sum(losses[-WINDOW:]) / WINDOW
    return now > 1.5 * begun + 1.0


@dataclass
class Patience:
    """Early stopping on the validation loss.

    Attributes:
        limit: Validations in a row without a lower loss that are borne.
        losses: Step and validation loss of every validation so far, in order.
    """

    limit: int
    losses: list[tuple[int, float]] = field(default_factory=list)

    def see(self, step: int, loss: float) -> bool:
        """Note a validation. Returns whether it is the best so far; of equal ones the first is."""
        best = self.best()
        self.losses.append((step, loss))
        return best is None or loss < best[1]

    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best validation."""
        return min(self.losses, key=lambda seen: (seen[1], seen[0])) if self.losses else None

    def is_over(self) -> bool:
        """Whether the last `limit` validations were all no better than one before them."""
        best = self.best()
        return best is not None and sum(step > best[0] for step, _ in self.losses) >= self.limit
