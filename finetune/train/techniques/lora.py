"""LoRA: small matrices beside the frozen linear layers (Hu et al. 2021, arXiv:2106.09685); rank-stabilised and DoRA too.

QLoRA is the same over a base held in 4 bits (Dettmers et al. 2023, arXiv:2305.14314). Either way the adapter is an
ordinary one: it is evaluated and served on the base as it is, not in 4 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune.config import Lora
from finetune.model import loading
from finetune.steps import Base
from finetune.train import adapter
from finetune.train.techniques.technique import Ground, Made


def load(ground: Ground) -> Any:
    """A frozen base with an adapter to be trained: a new one drawn by the seed, or the one to go on from."""
    return _with_adapter(loading.load_base(ground.base, ground.where, ground.kind), ground)


def load_4bit(ground: Ground) -> Any:
    """The same, the base's linear layers in 4 bits."""
    return _with_adapter(loading.load_base(ground.base, ground.where, ground.kind, True), ground)


def _with_adapter(model: Any, ground: Ground) -> Any:
    if ground.parent is not None:
        return loading.go_on(model, ground.parent, ground.lora, ground.seed)
    return loading.add_lora(model, ground.lora, ground.seed)


def optimiser(where: torch.device) -> str:
    """AdamW, in one kernel."""
    return "adamw_torch_fused"


def paged_optimiser(where: torch.device) -> str:
    """AdamW whose state moves to main memory when an accelerator's runs short."""
    return "paged_adamw_32bit" if where.type == "cuda" else "adamw_torch_fused"


def write(model: Any, base: Base, folder: Path) -> None:
    """The adapter alone, float32."""
    adapter.write_weights(model, base, folder)


def export(model: Any, made: Made, folder: Path) -> None:
    """A PEFT folder."""
    adapter.write_weights(model, made.base, folder)
    adapter.write_tokenizer(made.base_folder, made.template, folder)
    adapter.write_card(folder, made.base, made.resolved, shape(model), made.result)


def shape(model: Any) -> Lora:
    """The shape of a peft model's adapter: its own, where it was gone on from another."""
    config = model.peft_config["default"]
    return Lora(
        r=config.r,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
    )
