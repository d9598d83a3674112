"""Supervised training: transformers' Trainer with our own idea of what a step and its loss are.

To the Trainer one batch is one optimiser step: the indices of its examples. They are cut into micro-batches by a budget of
padded tokens, and the loss is the sum over the step's trained tokens divided by their number, so the cut changes nothing
but speed and memory. Loop, optimiser, clipping, callbacks and resume are the library's; checkpoints appear whole.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from finetune.data.arrays import Examples
from finetune.estimate.memory import Fit
from finetune.evaluate.answers import Question, answer
from finetune.evaluate.heldout import held_out
from finetune.exit_codes import StepError
from finetune.model.loading import is_out_of_memory
from finetune.steps import Resolved
from finetune.train import fused, heap, history, packing, ranks
from finetune.train.batches import Steps, micro_batches, packed, share
from finetune.train.computing import recompute
from finetune.train.folder import TrainFolder
from finetune.train.keeping import Keeping, Write
from finetune.train.loss import Score, lay, score
from finetune.train.stopping import Patience, ran_away
from finetune.train.stream import is_watched, stream
from finetune.train.tell import Teller
from finetune.train.watch import Watch

Settings = TypeVar("Settings", bound=TrainingArguments)
BEST = "best"
"""The folder of the weights with the lowest validation loss, where early stopping was asked for."""
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
    return one_accelerator(
        TrainingArguments(
            per_device_train_batch_size=resolved.batch_size * resolved.gradient_accumulation_steps,
            remove_unused_columns=False,
            ddp_timeout=24 * 3600,
            **common(folder, resolved, seed, where, optimiser),
        )
    )


def common(folder: TrainFolder, resolved: Resolved, seed: int, where: torch.device, optimiser: str) -> dict[str, Any]:
    """The settings that every trainer of the library's kind has here, whosever batches it takes. Arguments as `arguments`."""
    return {
        "output_dir": str(folder.path),
        "num_train_epochs": resolved.n_epochs,
        "learning_rate": resolved.learning_rate,
        "weight_decay": resolved.weight_decay,
        "max_grad_norm": resolved.max_grad_norm,
        "optim": optimiser,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": resolved.save_steps,
        "eval_strategy": "steps" if resolved.n_validation else "no",
        "eval_steps": resolved.eval_steps if resolved.n_validation else None,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": where.type == "cpu",
    }


def one_accelerator(made: Settings) -> Settings:
    """Settings for one process on one accelerator: never DataParallel, which would split a step's list of indices."""
    if made.n_gpu > 1:
        made._n_gpu = 1
    return made


def samples(questions: Sequence[Question], answers: Sequence[str]) -> list[dict[str, str]]:
    """Questions with what was answered, as a line of progress.jsonl has them."""
    return [
        {"prompt": asked.shown[:SHOWN], "answer": said[:SHOWN]} for asked, said in zip(questions, answers, strict=False)
    ]


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
        cut: Padded tokens a micro-batch, halved when memory is short; whether activations are computed twice.
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
        cut: Fit,
        teller: Teller,
        watch: Watch,
        ask: tuple[list[Question], Any],
    ) -> None:
        self.write, self.folder, self.resolved, self.teller, self.watch = write, folder, resolved, teller, watch
        self.train_examples, self.validation = splits
        self.lengths, self.trained = self.train_examples.lengths, self.train_examples.trained
        self.pad_id, self.budget, self.ask = pad_id, cut.tokens, ask
        self.losses: list[float] = []  # of all steps so far
        self.patience = Patience(limit) if (limit := resolved.early_stopping_patience) else None
        self.measures: dict[str, float] = {}  # of the last step, besides loss and accuracy
        if args.device.type == "cpu":
            heap.keep()
        fused.fuse(model)
        if resolved.packing:
            packing.require(model)
        self.sampler = Steps(len(self.train_examples), args.per_device_train_batch_size, args.seed)
        super().__init__(
            model,
            args,
            train_dataset=range(len(self.train_examples)),
            eval_dataset=range(len(self.validation)) if len(self.validation) else None,
            callbacks=[watch],
        )
        self.remove_callback(PrinterCallback)
        if cut.recompute and recompute(model):
            teller.notice(teller.step, "For the memory there is, activations are computed twice (slower by a third).")

    def get_train_dataloader(self) -> Any:
        """Batches `{"rows": indices of a step's examples}`; the arrays are read where they are used.

        Every process is given the whole step, and takes its share of it.
        """
        steps = DataLoader(self.train_dataset, batch_sampler=self.sampler, collate_fn=lambda rows: {"rows": rows})
        return self.accelerator.prepare(steps) if ranks.count() == 1 else prepare_data_loader(steps, num_processes=1)

    def create_accelerator_and_postprocess(self) -> None:
        """The library's, but that gradients are added up here and not by a wrapper around the model."""
        super().create_accelerator_and_postprocess()
        if ranks.count() > 1:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> None:
        """Train to the end, or to where a validation says that it gets no better; then the best weights are taken."""
        told = history.lineage(self.folder.lines())
        self.losses = [line["loss"] for line in told if line["event"] == "step"]
        if self.patience is not None:
            seen = [(line["step"], line["valid_loss"]) for line in told if line["event"] == "evaluation"]
            self.patience.losses = [(step, loss) for step, loss in seen if loss is not None]
        try:
            if self.patience is None or not self.patience.is_over():
                super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
            if self.patience is not None and self.watch.reason is None:
                self._take_best(self.patience)
        finally:
            self.teller.close()

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one optimiser step.

        Returns:
            Its loss: mean over the step's trained tokens.
        Raises:
            StepError: `loss_diverged`, or `out_of_memory` when no smaller micro-batch is left to try.
        """
        begun = time.monotonic()
        model.train()
        while (found := self._together(model, inputs["rows"])) is None:
            self._shrink(inputs["rows"])
        loss, correct, tokens = found
        self._last = loss, correct / max(1, tokens), tokens / (time.monotonic() - begun)
        self.losses.append(loss)
        if not math.isfinite(loss):
            raise self._diverged(f"The loss became {loss}")
        if ran_away(self.losses):
            raise self._diverged(f"The loss rose from {self.losses[0]:.3g} to {loss:.3g}")
        return torch.tensor(loss, device=self.args.device)

    def _together(self, model: Any, rows: list[int]) -> tuple[float, int, int] | None:
        """What `_accumulate` finds, every process having done its share of the step; None if memory ran out in any."""
        if ranks.count() == 1:
            return self._accumulate(model, rows)
        own = share(rows, self.lengths, ranks.rank(), ranks.count())
        found = self._accumulate(model, own) if own else (0.0, 0, 0)
        if ranks.anywhere(found is None, self.args.device) or found is None:
            return None
        part = self._weight(own) / max(1, self._weight(rows))
        sums = torch.tensor([found[0] * part, found[1], found[2]], dtype=torch.float64, device=self.args.device)
        grads = ranks.gradients(model)
        for grad in grads:
            grad.mul_(part)
        ranks.add_up([sums, *grads])
        return float(sums[0]), int(sums[1]), int(sums[2])

    def _weight(self, rows: list[int]) -> int:
        """What a step's loss is the mean over: trained tokens."""
        return int(self.trained[rows].sum())

    def _accumulate(self, model: Any, rows: list[int]) -> tuple[float, int, int] | None:
        """Add up a step's gradients, micro-batch by micro-batch. Returns loss, correct and all trained tokens; None if memory ran out."""
        total = self._weight(rows)
        loss = torch.zeros((), device=self.args.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.args.device)
        try:
            for lines in self._cut(rows):
                if not any(self.trained[line].any() for line in lines):
                    continue
                found = self._score_lines(model, lines)
                self.accelerator.backward(found.loss / total)
                loss, correct = loss + found.loss.detach(), correct + found.correct
        except (RuntimeError, MemoryError) as problem:
            if not is_out_of_memory(problem):
                raise
            return None
        return loss.item() / max(1, total), int(correct), total

    def _cut(self, rows: list[int]) -> list[list[list[int]]]:
        """The micro-batches of a step: of each its lines, of each line its examples."""
        if self.resolved.packing:
            return packed(rows, self.lengths, self.budget)
        return [[[row] for row in micro] for micro in micro_batches(rows, self.lengths, self.budget)]

    def _score_lines(self, model: Any, lines: list[list[int]]) -> Score:
        tokens, mask, positions = lay([[self.train_examples[row] for row in line] for line in lines], self.pad_id)
        return score(model, tokens, mask, positions if self.resolved.packing else None)

    def _shrink(self, rows: list[int]) -> None:
        """Halve the budget until the largest micro-batch of this step gets smaller."""
        self.model.zero_grad()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        before = len(self._cut(rows))
        longest = int(self.lengths[rows].max())
        while len(self._cut(rows)) == before:
            if self.budget <= longest:
                if self._recompute():
                    return
                told = f"Memory ran out on one example of {longest:,} tokens, alone. Lower hyperparameters.max_length or lora.r, or give the job more memory."
                raise StepError("out_of_memory", told)
            self.budget //= 2
        step = self.state.global_step + 1
        self.teller.notice(
            step, f"Memory ran out in step {step}: going on with micro-batches of {self.budget:,} tokens."
        )

    def _recompute(self) -> bool:
        """Compute activations anew on the way back instead of keeping them; False if that is done already, or cannot be."""
        if not recompute(self.model):
            return False
        step = self.state.global_step + 1
        told = f"Memory ran out in step {step} on one example: going on with activations computed twice (slower by a third)."
        self.teller.notice(step, told)
        return True

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
        if ranks.rank() > 0:
            return ranks.agreed({})
        return ranks.agreed(self._validate())

    def _validate(self) -> dict[str, float]:
        found = held_out(self.model, self.validation, self.pad_id, self.budget, lambda: self.watch.signalled)
        if found is None:
            return {}
        self.teller.evaluated(self.state.global_step, found.loss, found.accuracy, self._samples())
        return {"eval_loss": found.loss}

    def _samples(self) -> list[dict[str, str]]:
        """A few held-out questions with what the model answers; none when the training is asked to stop."""
        questions, tokenizer = self.ask
        if self.watch.signalled:
            return []
        return samples(questions, (stream if is_watched() else answer)(self.model, tokenizer, questions))

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate, keep the weights if they are the best so far, and stop if they have not been for long enough."""
        found: dict[str, float] = super()._evaluate(*args, **kwargs)
        if self.patience is None or "eval_loss" not in found:
            return found
        step = self.state.global_step
        if self.patience.see(step, found["eval_loss"]):
            with self.folder.making(BEST) as beside:
                self.write(self.model, beside)
        elif self.patience.is_over() and step < self.state.max_steps:
            best = self.patience.best()
            told = f"The validation loss has not fallen since step {best[0] if best else 0}: the training ends after step {step}."
            self.teller.notice(step, told)
            self.control.should_save = self.control.should_training_stop = True
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """A checkpoint's weights, and the best ones so far beside them."""
        super()._save(output_dir, state_dict)
        if output_dir is not None and (self.folder.path / BEST).is_dir():
            shutil.copytree(self.folder.path / BEST, Path(output_dir) / BEST, dirs_exist_ok=True)

    def _take_best(self, patience: Patience) -> None:
        """Let the model have the weights of its best validation."""
        best, newest = patience.best(), next(reversed(self.folder.checkpoints()), None)
        places = [self.folder.path / BEST, *([newest / BEST] if newest else [])]
        kept = next((place for place in places if place.is_dir()), None)
        if best is None or kept is None or best[0] == self.state.global_step:
            return
        self._load_from_checkpoint(str(kept))
        for line in history.lineage(self.folder.lines()):
            if line["event"] == "evaluation" and line["step"] == best[0]:
                self.teller.valid_loss, self.teller.valid_accuracy = (
                    line["valid_loss"],
                    line["valid_mean_token_accuracy"],
                )
        self.teller.notice(
            best[0], f"The result is that of step {best[0]}, with the lowest validation loss: {best[1]:.4f}."
        )

    def tokens_after(self, step: int) -> int:
        """Trained tokens of the first `step` steps."""
        return self.sampler.trained_before(step, self.trained)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: a batch holds indices here."""
        return 0
