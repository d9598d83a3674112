"""How long a training takes: by what earlier ones of the same kind took, else by written rules.

by rule      4 floating point operations for each weight and token with an adapter, 6 with all weights; half as many
             again with gradient checkpointing, DPO three times as many. A CPU core does 15-120 GFLOP/s of them, a GPU
             8-55 % of its peak. A step costs 3-250 ms besides; validation, checkpoints and samples up to half again.
by runs      tokens a second of the five runs nearest in size on the same base; those on other bases by their number
             of weights, with a wider margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune.config import Technique
from finetune.estimate.device import Device, teraflops
from finetune.estimate.ranges import Range, plus, spread, times
from finetune.estimate.shape import Shape

NEAREST = 5
CORE: Range = (15e9, 120e9)
USED: Range = (0.08, 0.55)
STEP: Range = (0.003, 0.25)
BESIDE: Range = (1.0, 1.5)
START: Range = (0.0, 20.0)
"""Seconds that even the shortest training may take: its validations, samples and checkpoint."""


@dataclass(frozen=True)
class Measured:
    """An earlier training, as it was.

    Attributes:
        base: Its id.
        parameters: Of the base.
        device: What it ran on.
        tokens: Over all epochs, prompts included.
        steps, seconds, peak_memory_bytes: Of the whole training.
        bytes_a_token: Bytes of text that made one token; None if that was not kept.
        longest: Tokens of the longest example.
    """

    base: str
    parameters: int
    device: str
    tokens: int
    steps: int
    seconds: float
    peak_memory_bytes: int
    bytes_a_token: float | None = None
    longest: int = 0


def by_rule(shape: Shape, technique: Technique, device: Device, tokens: Range, steps: Range, *, dpo: bool) -> Range:
    """Seconds of a training.

    Args:
        shape: The base's.
        technique: What is trained.
        device: Where.
        tokens: Over all epochs, prompts included.
        steps: Optimiser steps.
        dpo: Pairs, with a reference.
    """
    work = (6.0 if technique == "full" else 4.0) * shape.parameters
    operations = times((work, work * 1.5 * (3 if dpo else 1)), tokens)
    low, high = _flops(device)
    computing = times((operations[0] / high, operations[1] / low), BESIDE)
    return plus(START, computing, times(STEP, steps))


def by_runs(runs: Sequence[Measured], base: str, parameters: int, tokens: Range) -> tuple[Range, int] | None:
    """Seconds of a training by earlier ones, and how many those were; None if there are none.

    Args:
        runs: Of the same technique on the same kind of device, in any order.
        base: The base's id.
        parameters: Its weights.
        tokens: Over all epochs, prompts included.
    """
    middle = math.sqrt(max(1.0, tokens[0]) * max(1.0, tokens[1]))
    known = [run for run in runs if run.seconds > 0 and run.tokens > 0 and run.parameters > 0]
    same = [run for run in known if run.base == base]
    taken = sorted(same or known, key=lambda run: abs(math.log(run.tokens / middle)))[:NEAREST]
    if not taken or (not same and not parameters):
        return None
    rates = [run.tokens / run.seconds * (1 if same else run.parameters / parameters) for run in taken]
    low, high = spread(rates, _margin(len(taken), taken[0].tokens / middle) if same else 2.0)
    return plus((0.0, START[1] / 4), (tokens[0] / high, tokens[1] / low)), len(taken)


def memory_by_runs(runs: Sequence[Measured], base: str, longest: Range) -> tuple[Range, int] | None:
    """Bytes at most, by earlier trainings of the same base; None if there are none of examples about as long."""
    near = [run for run in runs if run.base == base and run.peak_memory_bytes > 0 and _alike(run.longest, longest)]
    taken = near[:NEAREST]
    if not taken:
        return None
    return spread((run.peak_memory_bytes for run in taken), 0.25 if len(taken) < 3 else 0.15), len(taken)


def _margin(count: int, ratio: float) -> float:
    """How far beyond what was measured a like run may lie: further after one run, and for runs of another size."""
    return (0.5 if count < 3 else 0.3) + 0.3 * min(3.0, abs(math.log10(ratio)))


def _alike(known: int, longest: Range) -> bool:
    return longest[0] / 2 <= known and longest[1] <= max(known * 2, 512)


def _flops(device: Device) -> Range:
    if device.kind == "gpu":
        low, high = teraflops(device)
        return low * 1e12 * USED[0] * 1, high * 1e12 * USED[1] * device.count
    return CORE[0] * max(1.0, device.count / 2), CORE[1] * device.count
