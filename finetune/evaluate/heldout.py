"""Loss and token accuracy on held-out examples, as in training: at the trained positions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune.data.arrays import Examples
from finetune.data.encode import Example
from finetune.evaluate.scores import Rows
from finetune.train.batches import micro_batches
from finetune.train.logits import hidden_at, piece_size
from finetune.train.loss import autocast, pad, score


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


def by_row(model: Any, examples: Examples | Sequence[Example], pad_id: int, budget: int) -> dict[str, Rows]:
    """`loss` and `token_accuracy` of each example, in their order.

    Args:
        model: Put into evaluation mode, and back into the mode it was in.
        examples: Any number.
        pad_id: Fills up shorter examples.
        budget: Padded tokens a micro-batch.
    """
    loss, correct, tokens = (np.zeros(len(examples)) for _ in range(3))
    lengths = (
        examples.lengths
        if isinstance(examples, Examples)
        else np.array([len(example.tokens) for example in examples], dtype=np.int64)
    )
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for rows in micro_batches(range(len(examples)), lengths, budget):
                found = _each(model, *pad([examples[row] for row in rows], pad_id))
                loss[rows], correct[rows], tokens[rows] = found.cpu().double().numpy()
    finally:
        model.train(training)
    return {"loss": Rows(loss, tokens), "token_accuracy": Rows(correct, tokens)}


def _each(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Loss, hits and trained tokens of each row of a micro-batch: float64, shape (3, rows)."""
    where, size = model.device, piece_size(model)
    tokens, wanted = tokens.to(where), mask[:, 1:].to(where)
    targets, row = tokens[:, 1:][wanted], wanted.nonzero()[:, 0]
    found = torch.zeros((3, len(tokens)), dtype=torch.float64, device=where)
    with autocast(model):
        hidden, logits_of = hidden_at(model, tokens[:, :-1], wanted)
        for begin in range(0, len(hidden), size):
            piece = slice(begin, begin + size)
            likely = logits_of(hidden[piece]).float().log_softmax(-1)
            found[0].index_add_(0, row[piece], -likely.gather(1, targets[piece, None])[:, 0].double())
            found[1].index_add_(0, row[piece], (likely.argmax(-1) == targets[piece]).double())
            found[2].index_add_(0, row[piece], torch.ones_like(targets[piece], dtype=torch.float64))
    return found
