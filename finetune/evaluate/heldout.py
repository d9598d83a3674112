"""Loss and token accuracy on held-out examples, as in training: at the trained positions only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from finetune.data.arrays import Examples
from finetune.train.batches import micro_batches
from finetune.train.loss import pad, score


@dataclass(frozen=True)
class HeldOut:
    """Over all trained tokens of the examples.

    Attributes:
        loss: Mean negative log-likelihood, nats.
        accuracy: Share of tokens that were the most likely ones.
        tokens: How many there were.
    """

    loss: float
    accuracy: float
    tokens: int


def held_out(
    model: Any, examples: Examples, pad_id: int, budget: int, stopped: Callable[[], bool] = lambda: False
) -> HeldOut | None:
    """Score examples.

    Args:
        model: Put into evaluation mode, and back into the mode it was in.
        examples: Any number.
        pad_id: Fills up shorter examples.
        budget: Padded tokens a micro-batch.
        stopped: Asked before every micro-batch: whether to give up.
    Returns:
        None if there is nothing to score, or on giving up.
    """
    loss, correct, tokens = 0.0, 0, 0
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for rows in micro_batches(range(len(examples)), examples.lengths, budget):
                if stopped():
                    return None
                found = score(model, *pad([examples[row] for row in rows], pad_id))
                loss, correct, tokens = loss + found.loss.item(), correct + int(found.correct), tokens + found.tokens
    finally:
        model.train(training)
    return HeldOut(loss / tokens, correct / tokens, tokens) if tokens else None
