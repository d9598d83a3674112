"""What is measured on an accelerator alone: the share of its arithmetic that LoRA of an 8B model uses, and QLoRA's memory.

The model has the shape of Llama 3 8B and random weights: speed and memory do not depend on what they are. Counted are the
operations that LoRA needs (forwards, and backwards to the activations: 4 a weight and token, attention on top), not those
that are done. Run by `python -m benchmarks.train gpu`; without an accelerator it says so and ends.
"""

from __future__ import annotations

import time
from typing import Any

SHAPE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip
PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""Dense bfloat16 operations a second by the vendors' data sheets."""
ROWS, WIDTH, STEPS = 8, 2048, 12


def measure() -> dict[str, Any]:
    """Both, for this accelerator."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no accelerator here: not run")
    name = torch.cuda.get_device_name()
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "rows": ROWS, "width": WIDTH}
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    for title, four_bit in (("lora", False), ("qlora", True)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = _steps(_model(four_bit))
        work = operations() / seconds
        found[title] = {
            "seconds_a_step": round(seconds, 4), "tokens_a_second": round(ROWS * WIDTH / seconds),
            "operations_a_second": work, "mfu": round(work / peak, 4) if peak else None,
            "peak_vram": torch.cuda.max_memory_allocated(),
        }  # fmt: skip
    return found


def operations() -> float:
    """Operations that a LoRA step over ROWS examples of WIDTH tokens needs, all of them trained."""
    hidden, layers = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    narrow = hidden * SHAPE["num_key_value_heads"] // SHAPE["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * narrow + 3 * hidden * SHAPE["intermediate_size"]
    weights = layers * layer + hidden * SHAPE["vocab_size"]
    attention = layers * 2 * WIDTH * hidden / 2  # causal: half of all pairs
    return ROWS * WIDTH * (4 * weights + 6 * attention)


def _model(four_bit: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from finetune.config import Lora
    from finetune.model import loading
    from finetune.train.fused import fuse

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16, attn_implementation="sdpa")
    if four_bit:
        model = _in_4_bits(model)
    made = loading.add_lora(model, Lora(r=16), 0).train()
    made.gradient_checkpointing_enable({"use_reentrant": False})
    fuse(made)
    return made


def _in_4_bits(model: Any) -> Any:
    """The linear layers of the body as nf4, one after another."""
    import bitsandbytes
    import torch
    from torch import nn

    for name, layer in list(model.model.named_modules()):
        if type(layer) is nn.Linear:
            small = bitsandbytes.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            small.weight = bitsandbytes.nn.Params4bit(layer.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            parent, _, own = name.rpartition(".")
            setattr(model.model.get_submodule(parent), own, small.to("cuda"))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return model


def _steps(model: Any) -> float:
    """Median seconds of a step."""
    import statistics

    import torch

    from finetune.train.loss import score

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    tokens = torch.randint(0, SHAPE["vocab_size"], (ROWS, WIDTH))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    lasted = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        begun = time.monotonic()
        found = score(model, tokens, mask)
        (found.loss / found.tokens).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        torch.cuda.synchronize()
        lasted.append(time.monotonic() - begun)
    return statistics.median(lasted[2:])
