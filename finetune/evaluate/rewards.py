"""What a model has learned of preferences, on the held-out pairs: rewards, by the base as reference.

A reward is beta times the log-ratio of an answer's probability to that by the reference (Rafailov et al. 2023,
arXiv:2305.18290). Where a training went on from an adapter, its own reference was that one; here it is the base.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from finetune.data.arrays import Pairs, paired
from finetune.evaluate.heldout import by_row
from finetune.steps import Resolved


def of_pairs(
    model: Any, untrained: Callable[[], AbstractContextManager[Any]], prepared: Path, pad_id: int, budget: int
) -> dict[str, float] | None:
    """Rewards over the held-out pairs.

    Args:
        model: What was trained.
        untrained: Opens the base.
        prepared: A prepared/ folder.
        pad_id: Fills up shorter examples.
        budget: Padded tokens a micro-batch.
    Returns:
        accuracy (share of pairs whose chosen answer has the higher reward), margin (mean distance of the two), chosen and
        rejected (means); None if there are no pairs.
    """
    pairs = Pairs(prepared, "validation") if paired(prepared) else None
    if not pairs:
        return None
    beta = Resolved.model_validate_json((prepared / "resolved.json").read_bytes()).beta or 0.0
    sides = pairs.chosen, pairs.rejected
    tuned = [by_row(model, side, pad_id, budget)["loss"].totals for side in sides]
    with untrained() as other:
        plain = [by_row(other, side, pad_id, budget)["loss"].totals for side in sides]
    chosen, rejected = (beta * (before - after) for before, after in zip(plain, tuned, strict=True))
    return {
        "accuracy": float((chosen > rejected).mean()),
        "margin": float((chosen - rejected).mean()),
        "chosen": float(chosen.mean()),
        "rejected": float(rejected.mean()),
    }
