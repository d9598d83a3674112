"""Every `auto` of a job's hyperparameters becomes a number here, by the rules written in `finetune/config.py`.

Pure arithmetic on what PREPARE_DATA counted; the trainer takes the result as it is.
"""

from __future__ import annotations

import math
from typing import Any

from finetune.config import Hyperparameters, MethodType, Technique

CHECKPOINTS = 10
BETA = 0.1
"""Of DPO, as in Rafailov et al. 2023, arXiv:2305.18290."""
SMALLER = 20
"""What the automatic learning rate is divided by where every weight moves, and where preferences are trained."""


def auto_epochs(n_examples: int) -> int:
    """`AUTO_EPOCHS`: clamp(ceil(500 / examples), 1, 8)."""
    return min(8, max(1, math.ceil(500 / n_examples)))


def auto_batch(n_examples: int) -> int:
    """`AUTO_BATCH`: the largest power of two that is not above examples / 32, within 1-16."""
    return min(16, 1 << max(0, (n_examples // 32).bit_length() - 1))


def auto_learning_rate(parameters: int, technique: Technique = "lora", method: MethodType = "supervised") -> float:
    """`AUTO_LEARNING_RATE` before the multiplier: larger models take smaller steps, and so do all weights at once, and DPO."""
    rate = 1e-3 if parameters < 1e9 else 5e-4 if parameters < 4e9 else 2e-4
    return rate / (SMALLER if technique == "full" else 1) / (SMALLER if method == "dpo" else 1)


def steps_per_epoch(n_examples: int, batch_size: int, gradient_accumulation_steps: int) -> int:
    """Optimiser steps of one pass; the last may hold fewer examples."""
    return math.ceil(n_examples / (batch_size * gradient_accumulation_steps))


def resolve(
    given: Hyperparameters,
    *,
    n_examples: int,
    parameters: int,
    technique: Technique = "lora",
    method: MethodType = "supervised",
) -> dict[str, Any]:
    """The fields of `steps.Resolved` that hyperparameters decide.

    Args:
        given: As the user asked.
        n_examples: Training examples, at least one.
        parameters: Weights of the base.
        technique: How they are trained.
        method: What they are trained on.
    """
    n_epochs = auto_epochs(n_examples) if given.n_epochs == "auto" else given.n_epochs
    batch_size = auto_batch(n_examples) if given.batch_size == "auto" else given.batch_size
    multiplier = 1.0 if given.learning_rate_multiplier == "auto" else given.learning_rate_multiplier
    rate = given.learning_rate
    if rate is None:
        rate = auto_learning_rate(parameters, technique, method) * multiplier
    each = steps_per_epoch(n_examples, batch_size, given.gradient_accumulation_steps)
    total = each * n_epochs
    kept = {
        name: getattr(given, name)
        for name in (
            "warmup_ratio",
            "weight_decay",
            "lr_scheduler",
            "gradient_accumulation_steps",
            "max_grad_norm",
            "save_total_limit",
            "early_stopping_patience",
            "packing",
        )
    }
    return kept | {
        "technique": technique,
        "method": method,
        "beta": (BETA if given.beta in (None, "auto") else given.beta) if method == "dpo" else None,
        "n_epochs": n_epochs,
        "batch_size": batch_size,
        "learning_rate_multiplier": multiplier,
        "learning_rate": rate,
        "save_steps": given.save_steps or math.ceil(total / CHECKPOINTS),
        "eval_steps": given.eval_steps or each,
        "total_steps": total,
    }
