"""Full fine-tuning: every weight is trained, in float32, with arithmetic in bfloat16 where the machine is quicker in it.

Takes 16 bytes a weight (weight, gradient, two moments of AdamW) besides activations. What comes out is a model of its own,
in the base's number format: nothing is needed beside it to serve it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune.exit_codes import StepError
from finetune.model import loading
from finetune.steps import Base
from finetune.train import adapter
from finetune.train.techniques.technique import Ground, Made


def load(ground: Ground) -> Any:
    """The base in float32: steps as small as they are here would be lost in the rounding of bfloat16.

    Raises:
        StepError: `unsupported_operation`: an adapter to go on from has no place in a training of all weights.
    """
    if ground.parent is not None:
        told = "technique='full' cannot go on from an adapter. Use lora or qlora, or give the base model itself."
        raise StepError("unsupported_operation", told, param="technique")
    model = loading.load_base(ground.base, ground.where, "float32")
    torch.manual_seed(ground.seed)
    model.computes_in = getattr(torch, ground.kind)
    return model


def optimiser(where: torch.device) -> str:
    """AdamW, in one kernel."""
    return "adamw_torch_fused"


def write(model: Any, base: Base, folder: Path) -> None:
    """All weights, float32."""
    model.save_pretrained(str(folder), max_shard_size=adapter.SHARD)


def export(model: Any, made: Made, folder: Path) -> None:
    """A transformers folder: safetensors in the base's own number format, configuration, tokenizer, template."""
    adapter.write_model(model, made.base_folder, folder)
    adapter.write_tokenizer(made.base_folder, made.template, folder)
    adapter.write_card(folder, made.base, made.resolved, None, made.result)
