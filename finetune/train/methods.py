"""Who trains: one trainer for each method (what is learned from) and backend (whose loop), in one table.

`own` cuts steps by tokens and keeps every promise of this package; `trl` is TRL's SFTTrainer with its own batches and loss
on the same prepared data, to compare with. Preferences are always TRL's loss in our loop. TRL is imported only where it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from finetune.config import Backend, MethodType
from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer
from finetune.estimate import device, shape
from finetune.estimate.memory import TOKENS, Fit, Load, fit
from finetune.evaluate.answers import read_questions
from finetune.model.loading import Precision
from finetune.steps import Base, Parent, Resolved, TrainStep
from finetune.train import computing
from finetune.train.folder import TrainFolder
from finetune.train.techniques import Technique
from finetune.train.tell import Teller
from finetune.train.trainer import SupervisedTrainer, arguments
from finetune.train.watch import Watch

SAMPLES = 2
"""Held-out questions answered at every validation."""


@dataclass(frozen=True)
class Given:
    """What a training starts from.

    Attributes:
        parent: The adapter to go on from, and its folder; None for a new one.
        key: The train key.
    """

    step: TrainStep
    prepared: Path
    base_folder: Path
    base: Base
    resolved: Resolved
    tokenizer: TextTokenizer
    pad_id: int
    parent: tuple[Parent, Path] | None
    key: str


@dataclass(frozen=True)
class Work:
    """What a trainer is made of.

    Attributes:
        given: Data, base, configuration.
        technique: How the model was made, and how its weights are written.
        model: The model, on the device `where`; computes in `kind`.
        folder, teller, watch: Where its state goes, who is told, who may stop it.
    """

    given: Given
    technique: Technique
    model: Any
    folder: TrainFolder
    teller: Teller
    watch: Watch
    where: torch.device
    kind: Precision

    def write(self, model: Any, folder: Path) -> None:
        """The trained weights, exactly."""
        self.technique.write(model, self.given.base, folder)

    def shared(self) -> dict[str, Any]:
        """What every trainer with our own loop takes."""
        given = self.given
        return {
            "write": self.write,
            "folder": self.folder,
            "resolved": given.resolved,
            "pad_id": given.pad_id,
            "cut": cut(given, self.where),
            "teller": self.teller,
            "watch": self.watch,
            "ask": (read_questions(given.prepared / "samples.jsonl", given.tokenizer, SAMPLES), given.tokenizer),
        }

    def arguments(self) -> Any:
        """The library's settings for our own loop."""
        optimiser = self.technique.optimiser(self.where)
        made = arguments(self.folder, self.given.resolved, self.given.step.seed, self.where, optimiser)
        for name, value in computing.liger(self.given.step.kernels).items():
            setattr(made, name, value)
        return made


def cut(given: Given, where: torch.device) -> Fit:
    """How a training is cut for the memory there is: as PREPARE_DATA resolved it, else by what this device has."""
    resolved = given.resolved
    if resolved.micro_batch_tokens is not None:
        return Fit(resolved.micro_batch_tokens, resolved.gradient_checkpointing)
    kind: device.Kind = "cpu" if where.type == "cpu" else "gpu"
    room = device.room_here().bytes if kind == "cpu" else None
    if where.type == "cuda":
        room = int(torch.cuda.get_device_properties(where).total_memory * device.USABLE)
    load = Load(
        shape=shape.of_folder(given.base_folder) or shape.of_parameters(given.base.parameters),
        technique=given.step.technique,
        lora=given.step.lora,
        device=device.Device(kind),
        longest=resolved.longest,
        dpo=given.step.method == "dpo",
        packing=resolved.packing,
    )
    return Fit(TOKENS[kind]) if room is None else fit(load, room)


def supervised(work: Work) -> Any:
    """Answers are learned, by our own loop."""
    splits = Examples(work.given.prepared, "train"), Examples(work.given.prepared, "validation")
    return SupervisedTrainer(work.model, work.arguments(), splits=splits, **work.shared())


def preference(work: Work) -> Any:
    """Preferences are learned: TRL's DPO loss in our own loop."""
    from finetune.train.preference import make

    return make(work)


def reference(work: Work) -> Any:
    """Answers are learned, by TRL's SFTTrainer."""
    from finetune.train.reference import make

    return make(work)


TRAINERS: dict[tuple[MethodType, Literal["own", "trl", "unsloth"]], Callable[[Work], Any]] = {
    ("supervised", "own"): supervised,
    ("supervised", "trl"): reference,
    ("supervised", "unsloth"): reference,
    ("dpo", "own"): preference,
    ("dpo", "trl"): preference,
}


def trainer(work: Work) -> Any:
    """The trainer that a job's method and backend name."""
    return TRAINERS[work.given.step.method, backend(work.given.step.backend)](work)


def backend(name: Backend) -> Literal["own", "trl", "unsloth"]:
    """What `auto` stands for."""
    return "own" if name == "auto" else name
