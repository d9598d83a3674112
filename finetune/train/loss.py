"""The loss at the trained positions, and nowhere else: most of a chat is its prompt, and the vocabulary is wide.

Examples are padded on the right and get no attention mask: attention is causal, so no token of an example ever sees its
padding. Used by training and by evaluation alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetune.data.encode import Example
from finetune.train.logits import hidden_at, piece_size, summed


@dataclass(frozen=True)
class Score:
    """What a model makes of some examples.

    Attributes:
        loss: Negative log-likelihood (nats) summed over the trained tokens, float32 scalar, with its graph.
        correct: Trained tokens that were the most likely ones, int64 scalar.
        tokens: Trained tokens.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    tokens: int


def pad(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One micro-batch.

    Args:
        examples: With n tokens at most.
        pad_id: Fills up on the right.
    Returns:
        tokens int64 and mask bool, both of shape (examples, n).
    """
    width = max(len(example.tokens) for example in examples)
    tokens = torch.full((len(examples), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        length = len(example.tokens)
        tokens[row, :length] = torch.tensor(example.tokens, dtype=torch.int64)
        mask[row, :length] = torch.tensor(example.mask, dtype=torch.bool)
    return tokens, mask


def score(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> Score:
    """Run a causal language model on a micro-batch.

    Args:
        model: A transformers or peft model.
        tokens: int64, shape (rows, n).
        mask: bool, same shape: this token carries loss as a target. The first of a row never does.
    """
    where = model.device
    end = _last(mask)
    tokens, wanted = tokens[:, : end + 1].to(where), mask[:, 1 : end + 1].to(where)
    targets = tokens[:, 1:][wanted]
    with autocast(model):
        hidden, logits_of = hidden_at(model, tokens[:, :-1], wanted)
        loss, correct = summed(hidden, targets, logits_of, piece_size(model), _head(model))
    return Score(loss, correct, len(targets))


def _last(mask: torch.Tensor) -> int:
    """The last position that carries loss in any row: what comes after it is not computed."""
    columns = mask.any(0).nonzero()
    return int(columns[-1]) if len(columns) else 1


def _head(model: Any) -> list[torch.Tensor]:
    """The weights of the output layer that are trained."""
    return [weight for weight in model.get_output_embeddings().parameters() if weight.requires_grad]


def autocast(model: Any) -> Any:
    """bfloat16 arithmetic for the float32 adapter too, if the base is in bfloat16; also for all of a float32 model that says so."""
    kind = getattr(model, "computes_in", model.dtype)
    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=kind == torch.bfloat16)
