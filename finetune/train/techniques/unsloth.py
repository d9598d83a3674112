"""LoRA and QLoRA on a model that Unsloth has rewritten for its own kernels. Needs an NVIDIA GPU and the package unsloth.

The package changes transformers, peft and TRL as it is imported: nothing but this module imports it, and only when asked.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from finetune.exit_codes import StepError
from finetune.model.loading import as_known
from finetune.train.techniques.technique import Ground

OUR_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""What `all-linear` means to it."""


def require() -> None:
    """Refuse where it is not installed.

    Raises:
        StepError: `unsupported_operation`.
    """
    if importlib.util.find_spec("unsloth") is None:
        told = "execution.backend='unsloth' needs the package unsloth and an NVIDIA GPU; it is not installed here. Install it, or leave the backend out."
        raise StepError("unsupported_operation", told, param="execution.backend")


def load(ground: Ground) -> Any:
    """Its model with a new adapter, the base in 16 bits."""
    return _load(ground, four_bit=False)


def load_4bit(ground: Ground) -> Any:
    """The same, the base's linear layers in 4 bits."""
    return _load(ground, four_bit=True)


def _load(ground: Ground, *, four_bit: bool) -> Any:
    require()
    if ground.parent is not None:
        told = "execution.backend='unsloth' cannot go on from an adapter. Leave the backend out."
        raise StepError("unsupported_operation", told, param="execution.backend")
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(str(ground.base), load_in_4bit=four_bit, local_files_only=True)
    targets = OUR_LINEAR if ground.lora.target_modules == "all-linear" else ground.lora.target_modules
    with as_known():
        return FastLanguageModel.get_peft_model(
            model,
            r=ground.lora.r,
            lora_alpha=ground.lora.alpha,
            lora_dropout=ground.lora.dropout,
            target_modules=targets,
            use_rslora=ground.lora.use_rslora,
            random_state=ground.seed,
            bias="none",
        )
