"""How much memory a training takes at most: written rules, in bytes, for the process of FINE_TUNE on a CPU or one GPU.

weights      2 bytes each in bfloat16, 4 in float32 (a CPU without bfloat16, technique full); 0.55-0.8 in 4 bits. While
             they are read, the file's own pages may stand beside them on a CPU.
trained      16 bytes each: weight, gradient and Adam's two moments in float32. LoRA on all linear layers has about
             23 weights for each unit of rank, layer and width.
activations  16-40 numbers for each token, layer and unit of width; with gradient checkpointing from 1 on.
logits       up to three copies in float32 at the trained positions of a micro-batch.
the rest     what Python, torch and transformers take before anything is loaded.
"""

from __future__ import annotations

from finetune.config import Lora, Technique
from finetune.estimate.device import Device
from finetune.estimate.ranges import Range, plus, times
from finetune.estimate.shape import Shape

MIB = 1 << 20
CPU_TOKENS, GPU_TOKENS = 1024, 16_384
"""Padded tokens of a micro-batch (finetune/train/batches.py); one longer example goes alone."""
RUNTIME: dict[str, Range] = {"ram": (250.0 * MIB, 1_600.0 * MIB), "vram": (0.0, 400.0 * MIB)}
"""Measured for tiny models; the upper end leaves room for other builds of torch."""
LORA_UNITS = (8.0, 30.0)
TRAINED_BYTES = 16.0
ACTIVATIONS: Range = (16.0, 40.0)
CHECKPOINTED = 1.0
FOUR_BITS: Range = (0.55, 0.8)


def peak(
    shape: Shape,
    technique: Technique,
    lora: Lora,
    device: Device,
    longest: Range,
    *,
    step: Range,
    trained_share: float,
    dpo: bool,
) -> Range:
    """Bytes at most.

    Args:
        shape: The base's.
        technique: What is trained.
        lora: The adapter's shape.
        device: Where.
        longest: Tokens of the longest example.
        step: Tokens of an optimiser step: a micro-batch has no more, unless one example has.
        trained_share: Of the tokens, at most: those with loss.
        dpo: Pairs, and a reference beside.
    """
    budget = CPU_TOKENS if device.kind == "cpu" else GPU_TOKENS
    low = max(longest[0], min(budget, step[0]))
    high = max(longest[1], min(budget, step[1])) * (2 if dpo else 1)
    width = (2.0, 4.0)
    activations = shape.units * ACTIVATIONS[0] * low * width[0], shape.units * ACTIVATIONS[1] * high * width[1]
    if device.kind == "gpu" or technique == "full":
        activations = shape.units * CHECKPOINTED * low * width[0], activations[1]
    logits = 0.0, high * trained_share * shape.vocabulary * 4.0 * 3
    trained = times((TRAINED_BYTES, TRAINED_BYTES), trained_weights(shape, technique, lora))
    return plus(RUNTIME[device.memory], _weights(shape, technique, device, dpo), trained, activations, logits)


def trained_weights(shape: Shape, technique: Technique, lora: Lora) -> Range:
    """How many weights are trained. With other target_modules than all linear layers it may be few."""
    if technique == "full":
        return float(shape.parameters), float(shape.parameters)
    least = LORA_UNITS[0] if lora.target_modules == "all-linear" else 0.0
    return least * lora.r * shape.units, LORA_UNITS[1] * lora.r * shape.units


def _weights(shape: Shape, technique: Technique, device: Device, dpo: bool) -> Range:
    """The base; for full training with DPO a second one. Weights trained in full are counted by `trained_weights`."""
    if technique == "qlora":
        low, high = FOUR_BITS
        return low * shape.parameters, high * shape.parameters + (shape.vocabulary * 8.0 * 1024)
    low, high = (2.0, 2.0) if device.kind == "gpu" else (2.0, 6.0)
    if technique == "full":
        low, high = 0.0, 8.0 if dpo else 4.0
    return low * shape.parameters, high * shape.parameters
