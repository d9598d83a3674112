"""How a model computes what it computes: activations twice, Liger's kernels, compiled layers. The result stays the same but for rounding.

Liger (arXiv:2410.10989) replaces norms, rotary embeddings and gated layers by Triton kernels; its losses are not taken, for
logits are ours to compute (`finetune.train.logits`). Layers are compiled one by one, so that all of a kind share a program.
"""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import torch
from torch import nn

from finetune.config import Kernels
from finetune.exit_codes import StepError

FIELD = "execution.kernels"


def require(kernels: Kernels, where: torch.device) -> None:
    """Refuse kernels that this machine does not have.

    Raises:
        StepError: `unsupported_operation`, about `execution.kernels`.
    """
    if kernels == "liger":
        if importlib.util.find_spec("liger_kernel") is None:
            raise _refused(
                "liger", "needs the package liger-kernel, which is not installed here", "Install llamaflow[gpu]"
            )
        if where.type != "cuda":
            raise _refused("liger", f"needs an NVIDIA GPU, and this training runs on {where.type!r}", "Ask for one")
    if kernels == "compile":
        if where.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
            raise _refused("compile", "needs a C++ compiler on a CPU, and there is none here", "Install g++")
        if where.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise _refused("compile", "needs the package triton on a GPU, which is not installed here", "Install it")


def liger(kernels: Kernels) -> dict[str, Any]:
    """transformers' settings for Liger; none where it is not asked for."""
    if kernels != "liger":
        return {}
    return {
        "use_liger_kernel": True,
        "liger_kernel_config": {"cross_entropy": False, "fused_linear_cross_entropy": False},
    }


def compile_layers(model: Any) -> int:
    """Compile each layer of a model for lines of any length, when it is first used.

    Args:
        model: A transformers or peft model.
    Returns:
        How many layers: those of its longest list of modules.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = max(lists, key=len, default=nn.ModuleList())
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)


def recompute(model: Any) -> bool:
    """Let a model compute activations anew on the way back instead of keeping them (Chen et al. 2016, arXiv:1604.06174).

    Returns:
        False if it does so already, or cannot.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner.is_activation_checkpointing or not inner.supports_gradient_checkpointing:
        return False
    inner.activation_checkpointing_enable({"use_reentrant": False})
    return True


def _refused(kernels: str, why: str, out: str) -> StepError:
    told = f"{FIELD}={kernels!r} {why}. {out}, or leave it out."
    return StepError("unsupported_operation", told, param=FIELD)
