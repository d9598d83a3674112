"""Which layers of a base an adapter changes, where experts of a mixture are fused into one parameter each.

LoRA stands beside linear layers. Routed experts held as one tensor of three dimensions are none, and the router that
chooses among them is better left alone: `all-linear` is then attention, shared experts and dense layers. Knows torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

AS_NAMED = "layers-as-named"
"""No model type: see `by_name`."""
MISREAD = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate"})
MISREADS = (
    "peft by itself takes the names of its layers for those of routed experts and loads it wrongly, with no more than a "
    f"warning: set base.config.model_type = {AS_NAMED!r} before it does."
)


def chosen(model: Any, asked: str | list[str]) -> str | list[str]:
    """The layers a new adapter is put beside.

    Args:
        model: A transformers model.
        asked: `lora.target_modules`.
    Returns:
        `asked`, or for `all-linear` of a mixture with fused experts the full names of its layers.
    """
    fused = fused_experts(model)
    if asked != "all-linear" or not fused:
        return asked
    routers = {
        name for block, experts in fused.items() for name in _routers(model.get_submodule(block), block, experts)
    }
    output = model.get_output_embeddings()
    return sorted(
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not output and name not in routers
    )


def fused_experts(model: Any) -> dict[str, int]:
    """The blocks of a model whose routed experts are fused parameters: name of the block, number of experts."""
    return {
        name.rpartition(".")[0]: shapes[0][0]
        for name, layer in model.named_modules()
        if (shapes := [weight.shape for weight in layer.parameters(recurse=False) if weight.ndim == 3])
        and not isinstance(layer, nn.modules.conv._ConvNd)
    }


def left_out(model: Any) -> str | None:
    """What an adapter leaves as it is that one would expect it to change, in a sentence; None if there is nothing to tell.

    Args:
        model: A peft model, or a transformers model that is trained whole.
    """
    fused = fused_experts(model)
    if not fused or not hasattr(model, "peft_config"):
        return None
    told = (
        f"{len(fused)} layers hold their {max(fused.values())} routed experts as single parameters: "
        "the adapter leaves these and their routers as they are."
    )
    adapted = {name.rpartition(".")[2] for name in model.targeted_module_names}
    if not adapted & MISREAD:
        return told
    return f"{told} {MISREADS}"


@contextmanager
def by_name(model: Any) -> Iterator[None]:
    """Let peft put adapters beside the layers that are named, shared experts among them.

    For models of this kind peft (0.18 and later) takes `gate_proj`, `up_proj` and `down_proj`, wherever they stand, for
    names that routed experts had in transformers 4, and targets the fused parameters in their place. It goes by the type
    of the model, which is hidden from it meanwhile.
    """
    config = model.config
    if not fused_experts(model):
        yield
        return
    config.model_type = AS_NAMED
    try:
        yield
    finally:
        del config.model_type  # the class has it


def _routers(block: Any, name: str, experts: int) -> list[str]:
    """Linear layers of a block that choose among its experts, or weigh the shared ones."""
    return [
        f"{name}.{child}"
        for child, layer in block.named_children()
        if isinstance(layer, nn.Linear) and layer.out_features in (1, experts)
    ]
