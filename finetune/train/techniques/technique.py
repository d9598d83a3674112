"""What a technique is: four functions. What it starts from, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.config import Lora
from finetune.model.loading import Precision
from finetune.steps import Base, Resolved, Result


@dataclass(frozen=True)
class Ground:
    """What a model to be trained is made from.

    Attributes:
        base: The base's folder.
        lora: The adapter's shape, where one is made.
        seed: Of whatever is drawn.
        parent: The folder of the adapter to go on from; None for a new one.
        where: The device.
        kind: What is computed in.
    """

    base: Path
    lora: Lora
    seed: int
    parent: Path | None
    where: torch.device
    kind: Precision


@dataclass(frozen=True)
class Made:
    """What is told of a training beside its weights.

    Attributes:
        base_folder, base: Its base.
        template: The chat template in force, Jinja.
        resolved: What was trained and how.
        result: How it ended.
    """

    base_folder: Path
    base: Base
    template: str
    resolved: Resolved
    result: Result


@dataclass(frozen=True)
class Technique:
    """One way to train.

    Attributes:
        load: The model, with what is to be trained left trainable. Raises StepError.
        optimiser: The optimiser by transformers' name for it, on a device.
        write: The weights that are trained, exactly, into a folder: for checkpoints.
        export: The finished product's folder. The model is not to be used afterwards.
    """

    load: Callable[[Ground], Any]
    optimiser: Callable[[torch.device], str]
    write: Callable[[Any, Base, Path], None]
    export: Callable[[Any, Made, Path], None]
