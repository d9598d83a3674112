"""How much memory a training takes at most: written rules, in bytes, for the process of FINE_TUNE on a CPU or one GPU.

weights      2 bytes each in bfloat16, 4 in float32 (a CPU without bfloat16, technique full); 0.55-0.8 in 4 bits. While
             they are read, the file's own pages may stand beside them on a CPU.
trained      16 bytes each: weight, gradient and Adam's two moments in float32. LoRA on all linear layers has about
             23 weights for each unit of rank, layer and width.
activations  16-40 numbers for each token, layer and unit of width; computed twice (gradient checkpointing) 1-3.
packing      masks over the lines of a micro-batch: a byte, and a number where arithmetic wants one, for each pair.
logits       up to three copies in float32 at the trained positions of a micro-batch.
the rest     what Python, torch and transformers take before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune.config import Lora, Technique
from finetune.estimate.device import Device, Kind
from finetune.estimate.ranges import Range, plus, times
from finetune.estimate.shape import Shape

MIB = 1 << 20
TOKENS: dict[Kind, int] = {"cpu": 1024, "gpu": 16_384}
"""Padded tokens of a micro-batch where memory is no matter: on a CPU measured to be faster than half or twice as many."""
LEAST: dict[Kind, int] = {"cpu": 256, "gpu": 2048}
"""Smaller micro-batches cost more than activations computed twice."""
RUNTIME: dict[str, Range] = {"ram": (250.0 * MIB, 1_600.0 * MIB), "vram": (0.0, 400.0 * MIB)}
"""Measured for tiny models; the upper end leaves room for other builds of torch."""
LORA_UNITS = (8.0, 30.0)
TRAINED_BYTES = 16.0
ACTIVATIONS: Range = (16.0, 40.0)
CHECKPOINTED: Range = (1.0, 3.0)
PIECES = 1600.0 * MIB
"""What the logits of a piece take at most (finetune/train/logits.py), in three copies."""
FOUR_BITS: Range = (0.55, 0.8)


@dataclass(frozen=True)
class Fit:
    """How a training is cut for the memory there is.

    Attributes:
        tokens: Padded tokens of a micro-batch; one longer example goes alone.
        recompute: Activations are computed twice instead of kept (gradient checkpointing).
        fits: Whether that is expected to be enough.
    """

    tokens: int
    recompute: bool = False
    fits: bool = True


@dataclass(frozen=True)
class Load:
    """What fills memory, whatever the cut.

    Attributes:
        shape: The base's.
        technique: What is trained.
        lora: The adapter's shape.
        device: Where.
        longest: Tokens of the longest example, at most.
        dpo: Pairs, and a reference beside.
        packing: Several examples a line.
    """

    shape: Shape
    technique: Technique
    lora: Lora
    device: Device
    longest: float
    dpo: bool = False
    packing: bool = False


def fit(load: Load, room: float) -> Fit:
    """The largest micro-batches that go into memory by the upper end of the rules; activations are kept where that is possible.

    Args:
        load: What is trained.
        room: Bytes there are.
    """
    most, least = TOKENS[load.device.kind], LEAST[load.device.kind]
    alone = load.longest * (2 if load.dpo else 1)
    for recompute in (False, True):
        tokens = most
        while True:
            if needed(load, max(tokens, alone), recompute) <= room:
                return Fit(tokens, recompute)
            if tokens // 2 < least or tokens <= alone:
                break
            tokens //= 2
    return Fit(least, True, fits=False)


def needed(load: Load, tokens: float, recompute: bool) -> float:
    """Bytes at most, with micro-batches of so many padded tokens."""
    shape, device = load.shape, load.device
    width = 2.0 if device.kind == "gpu" else 4.0
    numbers = (CHECKPOINTED if recompute else ACTIVATIONS)[1]
    trained = TRAINED_BYTES * trained_weights(shape, load.technique, load.lora)[1]
    kept = RUNTIME[device.memory][1] + _weights(shape, load.technique, device, load.dpo)[1] + trained
    logits = min(PIECES, tokens * shape.vocabulary * 12.0)
    return kept + shape.units * numbers * tokens * width + logits + (masks(tokens, load.longest) if load.packing else 0)


def masks(tokens: float, longest: float) -> float:
    """Bytes of the masks of a micro-batch of lines, at most."""
    return 5.0 * max(tokens, longest) * longest


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
    packing: bool = False,
    cut: Fit | None = None,
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
        packing: Several examples a line.
        cut: How it is cut for the memory there is; None where that is not known.
    """
    budget = cut.tokens if cut is not None else TOKENS[device.kind]
    low = max(longest[0], min(budget, step[0]))
    high = max(longest[1], min(budget, step[1])) * (2 if dpo else 1)
    width = (2.0, 4.0)
    numbers = CHECKPOINTED if cut is not None and cut.recompute else ACTIVATIONS
    if cut is None and (device.kind == "gpu" or technique == "full"):
        numbers = CHECKPOINTED[0], ACTIVATIONS[1]
    activations = shape.units * numbers[0] * low * width[0], shape.units * numbers[1] * high * width[1]
    if packing:
        activations = activations[0], activations[1] + masks(high, longest[1])
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
