"""TRL's SFTTrainer on the same prepared data: its own batches, padding, loss and order. What ours is compared with.

Checkpoints, stopping and what is told are those of every training here; batch sizes, learning rate and its course are the
job's. What a job does not say is TRL's default, gradient checkpointing among it.
"""

from __future__ import annotations

import math
import time
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from finetune.data.arrays import Examples, Split
from finetune.exit_codes import StepError
from finetune.model import loading
from finetune.train.keeping import Keeping
from finetune.train.methods import Work
from finetune.train.preference import library_tokenizer
from finetune.train.trainer import common, one_accelerator

IGNORED = -100
"""The label of a token without loss."""


class ReferenceTrainer(Keeping, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer, telling and keeping as ours does.

    Args:
        work: What it is made of.
    """

    def __init__(self, work: Work) -> None:
        self.write, self.folder, self.teller = work.write, work.folder, work.teller
        self.resolved = work.given.resolved
        self._then = time.monotonic(), 0
        held_out = rows(work, "validation") if self.resolved.n_validation else None
        super().__init__(
            work.model,
            args=_arguments(work),
            train_dataset=rows(work, "train"),
            eval_dataset=held_out,
            processing_class=library_tokenizer(work.given.tokenizer),
            callbacks=[work.watch],
        )
        self.remove_callback(PrinterCallback)

    def _send_telemetry(self) -> None:
        """Nothing is told to anybody."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card is written with the product."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train to the end, and tell nothing more."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.teller.close()

    def tokens_after(self, step: int) -> int:
        """Trained tokens of the first `step` steps, were they spread evenly: the order is TRL's."""
        done = step / self.resolved.total_steps * self.resolved.n_epochs
        return round(done * self.resolved.trained_tokens)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell a step or a validation.

        Raises:
            StepError: `loss_diverged`.
        """
        super().log(logs, start_time)
        step = self.state.global_step
        if "loss" in logs:
            self._tell(step, logs)
        elif "eval_loss" in logs:
            self.teller.evaluated(step, logs["eval_loss"], logs["eval_mean_token_accuracy"], [])

    def _tell(self, step: int, logs: dict[str, float]) -> None:
        if not math.isfinite(logs["loss"]):
            raise StepError(
                "loss_diverged", f"The loss became {logs['loss']} in step {step} of {self.state.max_steps}."
            )
        now, tokens = time.monotonic(), self.tokens_after(step)
        before, had = self._then
        self._then = now, tokens
        self.teller.trained(
            step,
            tokens=tokens,
            tokens_per_second=max(0, tokens - had) / max(1e-9, now - before),
            loss=logs["loss"],
            train_accuracy=logs["mean_token_accuracy"],
            learning_rate=logs["learning_rate"],
            grad_norm=float(logs["grad_norm"]),
        )


def rows(work: Work, split: Split) -> Dataset:
    """The prepared examples of a split as TRL takes tokenised ones: input_ids, and labels with `IGNORED` where no loss is."""
    examples = Examples(work.given.prepared, split)

    def each() -> Any:
        for index in range(len(examples)):
            example = examples[index]
            labels = [
                token if counts else IGNORED
                for token, counts in zip(example.tokens.tolist(), example.mask.tolist(), strict=True)
            ]
            yield {"input_ids": example.tokens.tolist(), "labels": labels}

    return Dataset.from_list(list(each()))


def _arguments(work: Work) -> SFTConfig:
    resolved = work.given.resolved
    settings = common(work.folder, resolved, work.given.step.seed, work.where, work.technique.optimiser(work.where))
    return one_accelerator(
        SFTConfig(
            per_device_train_batch_size=resolved.batch_size,
            per_device_eval_batch_size=resolved.batch_size,
            gradient_accumulation_steps=resolved.gradient_accumulation_steps,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            gradient_checkpointing=None,  # by its new name
            activation_checkpointing=True,
            bf16=work.kind == "bfloat16",
            **settings,
        )
    )


def make(work: Work) -> ReferenceTrainer:
    """TRL's trainer, and its model as TRL leaves it."""
    with loading.as_known():
        return ReferenceTrainer(work)
