"""A linear layer and its LoRA adapter as one operation: x Wᵀ + s (x Aᵀ) Bᵀ, added up in place.

peft computes the same in five operations, each of which reads and writes a whole activation, forwards and backwards. Only
plain cases are taken over (one adapter, no dropout, no DoRA, a frozen unquantised layer); all others stay peft's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.nn import functional


class Fused(torch.autograd.Function):  # type: ignore[misc]
    """The operation. What it saves: x, which layers on the same input share, and x Aᵀ, which is small."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Compute in the dtype of the frozen weight.

        Args:
            ctx: Autograd's.
            x: Shape (…, in).
            weight: Shape (out, in), frozen.
            bias: Shape (out,), frozen, or None.
            a: Shape (r, in).
            b: Shape (out, r).
            scaling: Of the adapter.
        Returns:
            Shape (…, out).
        """
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        down, up = a.to(weight.dtype), b.to(weight.dtype)
        inner = flat @ down.t()
        made = functional.linear(flat, weight, bias).addmm_(inner, up.t(), alpha=scaling)
        ctx.save_for_backward(flat, weight, down, up, inner)
        ctx.scaling, ctx.shape, ctx.kinds = scaling, x.shape, (x.dtype, a.dtype, b.dtype)
        return made.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of x, A and B; of the frozen weight none."""
        flat, weight, down, up, inner = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1]).to(weight.dtype)
        of_inner = (grad @ up).mul_(ctx.scaling)
        of_a = (of_inner.t() @ flat).to(ctx.kinds[1])
        of_b = (grad.t() @ inner).mul_(ctx.scaling).to(ctx.kinds[2])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (grad @ weight).addmm_(of_inner, down).reshape(ctx.shape).to(ctx.kinds[0])
        return of_x, None, None, of_a, of_b, None


def fuse(model: Any) -> int:
    """Let the LoRA layers of a peft model compute by `Fused` where they can; each decides anew at every call.

    Args:
        model: Any; only peft's plain LoRA layers over `torch.nn.Linear` are touched.
    Returns:
        How many layers were.
    """
    layers = [layer for layer in model.modules() if type(layer) is Linear and type(layer.base_layer) is nn.Linear]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    name = _plain(layer)
    if name is None or args or kwargs:
        theirs: torch.Tensor = Linear.forward(layer, x, *args, **kwargs)
        return theirs
    base = layer.base_layer
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    ours: torch.Tensor = Fused.apply(x, base.weight, base.bias, a, b, layer.scaling[name])
    return ours


def _plain(layer: Any) -> str | None:
    """The one adapter of a layer that can be computed at once; None if peft is to do it."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    name: str = layer.active_adapters[0]
    if name not in layer.lora_A or name in layer.lora_variant or layer.base_layer.weight.requires_grad:
        return None
    if not isinstance(layer.lora_dropout[name], nn.Identity) or layer.lora_B[name].bias is not None:
        return None
    return name
