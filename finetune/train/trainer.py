"""Supervised training: transformers' Trainer with our own idea of what a step and its loss are.

To the Trainer one batch is one optimiser step: the indices of its examples. They are cut into micro-batches by a budget of
padded tokens, and the loss is the sum over the step's trained tokens divided by their number, so the cut changes nothing
but speed and memory. Loop, optimiser, clipping, callbacks and resume are the library's; checkpoints appear whole.
"""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from finetune.data.arrays import Examples
from finetune.evaluate.answers import Question, answer
from finetune.evaluate.heldout import held_out
from finetune.exit_codes import StepError
from finetune.model.loading import is_out_of_memory
from finetune.steps import Resolved
from finetune.train import fused, heap, schedule
from finetune.train.batches import Steps, micro_batches
from finetune.train.folder import TrainFolder
from finetune.train.keeping import Keeping, Write
from finetune.train.loss import pad, score
from finetune.train.tell import Teller
from finetune.train.watch import Watch

SHOWN = 4000
"""Characters of a question or an answer that a line of progress.jsonl has at most."""


def arguments(
    folder: TrainFolder, resolved: Resolved, seed: int, where: torch.device, optimiser: str = "adamw_torch_fused"
) -> TrainingArguments:
    """The library's settings for a training.

    Args:
        folder: Where checkpoints go.
        resolved: What is trained and how.
        seed: Of everything random.
        where: The device.
        optimiser: By the library's name.
    """
    made = TrainingArguments(
        output_dir=str(folder.path),
        per_device_train_batch_size=resolved.batch_size * resolved.gradient_accumulation_steps,
        num_train_epochs=resolved.n_epochs,
        learning_rate=resolved.learning_rate,
        weight_decay=resolved.weight_decay,
        max_grad_norm=resolved.max_grad_norm,
        optim=optimiser,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=resolved.save_steps,
        eval_strategy="steps" if resolved.n_validation else "no",
        eval_steps=resolved.eval_steps if resolved.n_validation else None,
        seed=seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=where.type == "cpu",
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # one process, one accelerator: never DataParallel, which would split a step's list of indices
    return made


class SupervisedTrainer(Keeping, Trainer):  # type: ignore[misc]
    """Trains what a technique has left to be trained of a model.

    Args:
        model: Base and adapter, or a base alone.
        args: By `arguments`.
        write: Writes its weights into checkpoints.
        folder: Its train/ folder.
        resolved: What is trained and how.
        splits: Training and validation examples.
        pad_id: Fills up shorter examples.
        budget: Padded tokens a micro-batch; halved when memory is short.
        teller: Is told every step.
        watch: May stop the training.
        ask: A few held-out questions, answered at every validation, and the tokenizer for them.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        write: Write,
        folder: TrainFolder,
        resolved: Resolved,
        splits: tuple[Examples, Examples],
        pad_id: int,
        budget: int,
        teller: Teller,
        watch: Watch,
        ask: tuple[list[Question], Any],
    ) -> None:
        self.write, self.folder, self.resolved, self.teller, self.watch = write, folder, resolved, teller, watch
        self.train_examples, self.validation = splits
        self.lengths, self.trained = self.train_examples.lengths, self.train_examples.trained
        self.pad_id, self.budget, self.ask = pad_id, budget, ask
        self.measures: dict[str, float] = {}  # of the last step, besides loss and accuracy
        if args.device.type == "cpu":
            heap.keep()
        fused.fuse(model)
        self.sampler = Steps(len(self.train_examples), args.per_device_train_batch_size, args.seed)
        super().__init__(
            model,
            args,
            train_dataset=range(len(self.train_examples)),
            eval_dataset=range(len(self.validation)) if len(self.validation) else None,
            callbacks=[watch],
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Any:
        """Batches `{"rows": indices of a step's examples}`; the arrays are read where they are used."""
        return self.accelerator.prepare(
            DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=lambda rows: {"rows": rows})
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
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

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimiser step.

        Returns:
            Its loss: mean over the step's trained tokens.
        Raises:
            StepError: `loss_diverged`, or `out_of_memory` when no smaller micro-batch is left to try.
        """
        begun = time.monotonic()
        model.train()
        while (found := self._accumulate(model, inputs["rows"])) is None:
            self._shrink(inputs["rows"])
        loss, correct, tokens = found
        self._last = loss, correct / max(1, tokens), tokens / (time.monotonic() - begun)
        if not math.isfinite(loss):
            raise self._diverged(f"The loss became {loss}")
        return torch.tensor(loss, device=self.args.device)

    def _accumulate(self, model: Any, rows: list[int]) -> tuple[float, int, int] | None:
        """Add up a step's gradients, micro-batch by micro-batch. Returns loss, correct and all trained tokens; None if memory ran out."""
        total = int(self.trained[rows].sum())
        loss = torch.zeros((), device=self.args.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.args.device)
        try:
            for micro in micro_batches(rows, self.lengths, self.budget):
                if not self.trained[micro].any():
                    continue
                found = score(model, *pad([self.train_examples[row] for row in micro], self.pad_id))
                self.accelerator.backward(found.loss / total)
                loss, correct = loss + found.loss.detach(), correct + found.correct
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            return None
        return loss.item() / max(1, total), int(correct), total

    def _shrink(self, rows: list[int]) -> None:
        """Halve the budget until the largest micro-batch of this step gets smaller."""
        self.model.zero_grad()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        before = len(micro_batches(rows, self.lengths, self.budget))
        longest = int(self.lengths[rows].max())
        while len(micro_batches(rows, self.lengths, self.budget)) == before:
            if self.budget <= longest:
                told = f"Memory ran out on one example of {longest:,} tokens, alone. Lower hyperparameters.max_length or lora.r, or give the job more memory."
                raise StepError("out_of_memory", told)
            self.budget //= 2
        step = self.state.global_step + 1
        self.teller.notice(
            step, f"Memory ran out in step {step}: going on with micro-batches of {self.budget:,} tokens."
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm before clipping; a step whose gradients are not finite is not taken."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            raise self._diverged("The gradients became infinite")
        return norm

    def _diverged(self, what: str) -> StepError:
        step = self.state.global_step + 1
        return StepError(
            "loss_diverged",
            f"{what} in step {step} of {self.state.max_steps} (learning rate {self.resolved.learning_rate:g}). Lower the learning rate, or look for broken examples.",
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell a step. The library's closing summary is passed over."""
        if "loss" not in logs:
            return
        step = self.state.global_step
        loss, accuracy, speed = self._last
        self.teller.trained(
            step,
            tokens=self.sampler.trained_before(step, self.trained),
            tokens_per_second=speed,
            loss=loss,
            train_accuracy=accuracy,
            learning_rate=logs["learning_rate"],
            grad_norm=logs["grad_norm"],
            **self.measures,
        )
        self.control.should_log = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the validation rows, answer a few of them, and tell. Given up when the training is asked to stop."""
        self.control.should_evaluate = False
        found = held_out(self.model, self.validation, self.pad_id, self.budget, lambda: self.watch.signalled)
        if found is None:
            return {}
        questions, tokenizer = self.ask
        answers = answer(self.model, tokenizer, questions) if not self.watch.signalled else []
        samples = [
            {"prompt": asked.shown[:SHOWN], "answer": said[:SHOWN]}
            for asked, said in zip(questions, answers, strict=False)
        ]
        self.teller.evaluated(self.state.global_step, found.loss, found.accuracy, samples)
        return {"eval_loss": found.loss}

    def tokens_after(self, step: int) -> int:
        """Trained tokens of the first `step` steps."""
        return self.sampler.trained_before(step, self.trained)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: a batch holds indices here."""
        return 0
