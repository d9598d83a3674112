"""Proof that a model keeps the examples of a line apart, taken on the very model before its first step.

transformers takes position ids that begin anew within a line for the beginning of another sequence, and lets attention
see nothing before it, in whatever layers build their masks by its `masking_utils`. Whether a model does, is measured.
"""

from __future__ import annotations

from typing import Any

import torch

from finetune.model.packs import refused
from finetune.train.logits import hidden_at
from finetune.train.loss import autocast

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""How far, as a share of its length, a hidden state may be from that of the example alone: rounding, and no more."""
BEFORE, AFTER = 24, 17
"""Tokens of the two examples that are tried."""


def require(model: Any) -> None:
    """Refuse a model that computes an example otherwise behind another one than alone.

    Args:
        model: A transformers or peft model. Nothing of it is changed, and no random number is drawn.
    Raises:
        StepError: `unsupported_operation`, about `hyperparameters.packing`.
    """
    training = model.training
    model.eval()
    kind = model.config.get_text_config().model_type
    try:
        with autocast(model):
            off = distance(model)
    except (TypeError, ValueError) as problem:
        raise refused(f"a base of the type {kind!r} takes no positions ({str(problem).splitlines()[0]})") from problem
    finally:
        model.train(training)
    width = torch.bfloat16 if getattr(model, "computes_in", model.dtype) != torch.float32 else torch.float32
    if not off <= TOLERANCE[width]:
        raise refused(f"a base of the type {kind!r} lets an example see the one before it")


def distance(model: Any) -> float:
    """How far the hidden states of an example behind another one are from those of it alone, as a share of their length.

    The worst of the first two tokens, which see least of their own example, and of the median token: a mixture's
    router may send a single token elsewhere for a rounding.
    """
    drawn = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    tokens = torch.randint(0, size, (1, BEFORE + AFTER), generator=drawn)
    positions = torch.cat([torch.arange(BEFORE), torch.arange(AFTER)])[None]
    behind = _hidden(model, tokens, positions)[BEFORE:]
    alone = _hidden(model, tokens[:, BEFORE:], positions[:, BEFORE:])
    off = (behind - alone).norm(dim=-1) / alone.norm(dim=-1).clamp_min(1e-12)
    return float(torch.stack([off[:2].max(), off.median()]).max())


def _hidden(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states of a line, shape (n, hidden), float32."""
    where = model.device
    wanted = torch.ones_like(tokens, dtype=torch.bool, device=where)
    with torch.no_grad():
        return hidden_at(model, tokens.to(where), wanted, position_ids=positions.to(where))[0].float()
