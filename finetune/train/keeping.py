"""What every trainer here has of ours: the learning rate's course, and how checkpoints are kept (written beside and renamed,
weights in safetensors, told when they are there).

A mixin for transformers' Trainer and what others made of it; what else a checkpoint holds (optimiser, schedule, random
numbers, position) is the library's.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune.steps import Resolved
from finetune.train import schedule
from finetune.train.folder import TrainFolder, publish
from finetune.train.tell import Teller

Write = Callable[[Any, Path], None]
"""Writes the weights that are trained of a model into a folder that is there."""


class Keeping:
    """Before a Trainer in the order of bases.

    Attributes:
        folder: The job's train/ folder.
        resolved: Says how the learning rate goes, and how many checkpoints are kept.
        teller: Is told of every one.
        write: Writes the model's weights.
    """

    folder: TrainFolder
    resolved: Resolved
    teller: Teller
    write: Write

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate's course by `finetune.train.schedule`."""
        course = partial(
            schedule.factor,
            total_steps=num_training_steps,
            warmup_ratio=self.resolved.warmup_ratio,
            kind=self.resolved.lr_scheduler,
        )
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, course)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_output_dir(self, trial: Any) -> str:
        """Where the library writes a checkpoint: beside, not where checkpoints are looked for."""
        return str(self.folder.path / ".making-checkpoint")

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """A checkpoint that appears whole: weights, optimiser, schedule, random numbers, position."""
        beside, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        shutil.rmtree(beside, ignore_errors=True)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]  # the Trainer's
        publish(beside / name, self.folder.path / name)
        shutil.rmtree(beside, ignore_errors=True)
        self.folder.keep(self.resolved.save_total_limit)
        self.teller.saved(self.state.global_step, str(self.folder.path / name))
        self.folder.write_metrics()

    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Only what is trained, in safetensors; the library would add its arguments as a pickle."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.write(self.model, folder)
