"""What a training tells while it runs: lines of progress.jsonl for the service, and lines people read.

Adds up time over all attempts, so that what a user sees and what a limit counts is the training, not one process of it.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from finetune.progress import append
from finetune.train import history
from finetune.train.board import Board
from finetune.train.folder import TrainFolder


@dataclass
class Teller:
    """Writes the progress of one attempt.

    Attributes:
        folder: Its train/ folder.
        total_steps: Of the whole training.
        n_epochs: All of the same length.
        where: The device.
        loss, accuracy: Of the last step.
        valid_loss, valid_accuracy: Of the last validation.
    """

    folder: TrainFolder
    total_steps: int
    n_epochs: int
    where: torch.device
    loss: float | None = None
    accuracy: float | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None
    step: int = 0
    _board: Board | None = None
    _first_step: int = 0
    _earlier: tuple[float, float] = (0.0, 0.0)
    _begun: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def start(self, resumed_from: int | None, **facts: Any) -> None:
        """Begin an attempt: what earlier ones told is taken up."""
        lines = self.folder.lines()
        self._earlier = history.spent(lines)
        self._begun = time.monotonic(), time.process_time()
        self.step = self._first_step = resumed_from or 0
        append(self.folder.progress, "start", total_steps=self.total_steps, resumed_from=resumed_from, **facts)
        self._board = Board(self.folder.path, self.step)
        self.valid_loss, self.valid_accuracy = history.last_evaluation(self.folder.lines())
        self.loss, self.accuracy = history.last_step(self.folder.lines())
        how = (
            f"Going on after step {resumed_from} of {self.total_steps}" if resumed_from else f"{self.total_steps} steps"
        )
        say(f"{how}, {facts.get('precision')} on {facts.get('device')}")

    def seconds(self) -> float:
        """How long the training has run, over all attempts."""
        return self._earlier[0] + time.monotonic() - self._begun[0]

    def cpu_seconds(self) -> float:
        """CPU time of the training, over all attempts."""
        return self._earlier[1] + time.process_time() - self._begun[1]

    def trained(self, step: int, *, tokens: int, tokens_per_second: float, **numbers: float | None) -> None:
        """One optimiser step is done. numbers: loss, train_accuracy, learning_rate, grad_norm."""
        self.step, self.loss, self.accuracy = step, numbers["loss"], numbers["train_accuracy"]
        eta = (time.monotonic() - self._begun[0]) / (step - self._first_step) * (self.total_steps - step)
        append(
            self.folder.progress, "step", step=step, total_steps=self.total_steps, epoch=round(step * self.n_epochs / self.total_steps, 4),
            **numbers, tokens=tokens, tokens_per_second=round(tokens_per_second, 1), eta_seconds=round(eta, 1),
            **self._spent(), memory_bytes=peak_memory(self.where),
        )  # fmt: skip
        if self._board is not None:
            self._board.show(step, {**numbers, "tokens_per_second": tokens_per_second})
        say(
            f"step {step}/{self.total_steps}  loss {numbers['loss']:.4f}  accuracy {numbers['train_accuracy']:.3f}  "
            f"rate {numbers['learning_rate']:.2e}  {tokens_per_second:.0f} tokens/s  {eta:.0f} s to go"
        )

    def evaluated(
        self, step: int, loss: float, accuracy: float, samples: list[dict[str, str]], **measures: float
    ) -> None:
        """The validation rows were scored. measures: what else is told, such as the rewards of preferences."""
        self.valid_loss, self.valid_accuracy = loss, accuracy
        append(
            self.folder.progress, "evaluation", step=step, valid_loss=loss, valid_mean_token_accuracy=accuracy,
            **measures, samples=samples, **self._spent(),
        )  # fmt: skip
        if self._board is not None:
            self._board.show(step, {"valid_loss": loss, "valid_mean_token_accuracy": accuracy})
            self._board.say(step, samples)
        say(f"step {step}/{self.total_steps}  validation loss {loss:.4f}  accuracy {accuracy:.3f}")

    def saved(self, step: int, path: str) -> None:
        """A checkpoint lies at `path`."""
        append(
            self.folder.progress, "checkpoint", step=step, path=path, train_loss=self.loss,
            train_mean_token_accuracy=self.accuracy, valid_loss=self.valid_loss,
            valid_mean_token_accuracy=self.valid_accuracy, **self._spent(),
        )  # fmt: skip

    def notice(self, step: int, message: str) -> None:
        """Something a user should know, such as that memory was short."""
        append(self.folder.progress, "notice", step=step, message=message)
        say(message)

    def close(self) -> None:
        """Nothing more is told of this attempt but its end."""
        if self._board is not None:
            self._board.close()

    def _spent(self) -> dict[str, float]:
        return {"seconds": round(self.seconds(), 3), "cpu_seconds": round(self.cpu_seconds(), 3)}


def say(text: str) -> None:
    """Print a line. If whoever read them is gone (a signal often ends both), nothing more is printed, and work goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def device_name(where: torch.device) -> str:
    """What a training runs on: `cpu`, or the GPU's name."""
    return str(torch.cuda.get_device_name(where)) if where.type == "cuda" else where.type


def threads() -> int:
    """CPU threads of the arithmetic."""
    return int(torch.get_num_threads())


def peak_memory(where: torch.device) -> int:
    """Bytes this process has had at most: on the accelerator, else in main memory."""
    if where.type == "cuda":
        return int(torch.cuda.max_memory_allocated(where))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
