"""The loss at the trained positions, and nowhere else: most of a chat is its prompt, and the vocabulary is wide.

Lines are padded on the right and get no attention mask: attention is causal, so no token of an example ever sees its
padding. Where several examples stand in one line, position ids that begin anew with each keep attention inside it
(`finetune.train.packing`). Used by training and by evaluation alike.
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
    """One micro-batch, an example a line.

    Args:
        examples: With n tokens at most.
        pad_id: Fills up on the right.
    Returns:
        tokens int64 and mask bool, both of shape (examples, n).
    """
    return lay([[example] for example in examples], pad_id)[:2]


def lay(lines: Sequence[Sequence[Example]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One micro-batch, any number of examples a line.

    Args:
        lines: The examples of each, n tokens at most together.
        pad_id: Fills up on the right.
    Returns:
        tokens int64, mask bool (never at the first token of an example, which nothing of it predicts) and positions int64
        (from 0 in every example, and in what fills up), all of shape (lines, n).
    """
    width = max(sum(len(example.tokens) for example in line) for line in lines)
    tokens = torch.full((len(lines), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(lines), width), dtype=torch.bool)
    positions = torch.zeros((len(lines), width), dtype=torch.int64)
    for number, line in enumerate(lines):
        begin = 0
        for example in line:
            end = begin + len(example.tokens)
            tokens[number, begin:end] = torch.tensor(example.tokens, dtype=torch.int64)
            mask[number, begin:end] = torch.tensor(example.mask, dtype=torch.bool)
            mask[number, begin] = False
            positions[number, begin:end] = torch.arange(end - begin)
            begin = end
        positions[number, begin:] = torch.arange(width - begin)
    return tokens, mask, positions


def score(model: Any, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor | None = None) -> Score:
    """Run a causal language model on a micro-batch.

    Args:
        model: A transformers or peft model.
        tokens: int64, shape (lines, n).
        mask: bool, same shape: this token carries loss as a target. The first of an example never does.
        positions: int64, same shape: of each token in its example, where several stand in one line.
    """
    where = model.device
    end = _last(mask)
    tokens, wanted = tokens[:, : end + 1].to(where), mask[:, 1 : end + 1].to(where)
    targets = tokens[:, 1:][wanted]
    given = {} if positions is None else {"position_ids": positions[:, :end].to(where)}
    with autocast(model):
        hidden, logits_of = hidden_at(model, tokens[:, :-1], wanted, **given)
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
