"""Preference training: TRL's loss of Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290) in our own loop.

TRL's DPOTrainer computes loss, rewards and the reference; steps, micro-batches, checkpoints, resume and what is told are
those of supervised training. The reference is the model before its first step: the base with the adapter switched off, a
copy of the adapter that is gone on from, or, where every weight is trained, the base held a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from finetune.data.arrays import EncodedPair, Pairs, Split
from finetune.data.encode import Example
from finetune.data.tokenizer import TextTokenizer
from finetune.model import loading
from finetune.train.batches import micro_batches
from finetune.train.loss import autocast, pad
from finetune.train.methods import Work
from finetune.train.trainer import SupervisedTrainer, one_accelerator

MEASURES = {
    "rewards_margin": "rewards/margins",
    "rewards_accuracy": "rewards/accuracies",
    "rewards_chosen": "rewards/chosen",
    "rewards_rejected": "rewards/rejected",
}
"""What is told of preferences, and TRL's names for it; rewards are beta times the log-ratio to the reference."""
TOKEN_ACCURACY = "mean_token_accuracy"  # noqa: S105  no password


class PairRows(Pairs):
    """Pairs as a trainer counts them: lengths and trained tokens of both sides together."""

    def __init__(self, work: Work, split: Split) -> None:
        super().__init__(work.given.prepared, split)

    @property
    def lengths(self) -> Any:
        """Padded tokens a pair takes, shape (n,): twice its longer side."""
        return 2 * super().lengths

    @property
    def trained(self) -> Any:
        """Trained tokens of both sides, shape (n,)."""
        return self.chosen.trained + self.rejected.trained


class Objective(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer as what computes a loss: it trains nothing, prepares nothing, sends nothing."""

    def _prepare_dataset(self, dataset: Any, *_args: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        """Nothing is told to anybody."""

    def taken(self) -> dict[str, float]:
        """The measures of the last `compute_loss`, by TRL's names; forgotten here afterwards."""
        mode = "train" if self.model.training else "eval"
        found = {name: values[-1] for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        return found


def objective(work: Work) -> Objective:
    """TRL's trainer around the model of `work`, with the reference this training has."""
    given, model = work.given, work.model
    peft = hasattr(model, "peft_config")
    trained = {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}
    config = one_accelerator(
        DPOConfig(
            output_dir=str(work.folder.path),
            beta=given.resolved.beta,
            max_length=None,
            gradient_checkpointing=None,
            activation_checkpointing=False,
            bf16=False,
            seed=given.step.seed,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=work.where.type == "cpu",
        )
    )
    with loading.as_known():
        made = Objective(
            model,
            ref_model=None if peft else loading.load_base(given.base_folder, work.where, work.kind),
            args=config,
            data_collator=lambda rows: rows,
            train_dataset=Dataset.from_dict({"row": [0]}),
            processing_class=library_tokenizer(given.tokenizer),
        )
    # every process cuts its step as it needs: nothing may wait for the others here
    made.accelerator.gather = made.accelerator.gather_for_metrics = lambda value: value
    if peft:
        _settle_reference(model, keep=given.parent is not None)
    for name, weight in model.named_parameters():
        if name in trained:
            weight.data = trained[name]  # TRL rounds the adapter of a 4-bit base to bfloat16
    return made


def _settle_reference(model: Any, *, keep: bool) -> None:
    """Of the copy that TRL made of the adapter: kept frozen where it is the reference, else removed."""
    if not keep:
        model.delete_adapter("ref")
        model.set_adapter("default")
        return
    for name, weight in model.named_parameters():
        if ".ref." in name:
            weight.requires_grad_(False)


def library_tokenizer(tokenizer: TextTokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer in transformers' clothes, padding as we pad: TRL wants to be shown one."""
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)
    made.pad_token = tokenizer.backend.id_to_token(tokenizer.pad_id)
    if tokenizer.eos_id is not None:
        made.eos_token = tokenizer.backend.id_to_token(tokenizer.eos_id)
    return made


def batch(pairs: Sequence[EncodedPair], pad_id: int, where: torch.device) -> dict[str, torch.Tensor]:
    """Pairs as TRL's loss takes them: all chosen sides, then all rejected ones, padded on the right.

    Returns:
        input_ids, attention_mask (0: fills up) and completion_mask (1: carries loss as a target), int64, all of shape
        (2 · pairs, n).
    """
    sides: list[Example] = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    tokens, mask = pad(sides, pad_id)
    lengths = torch.tensor([[len(side.tokens)] for side in sides])
    there = torch.arange(tokens.shape[1])[None] < lengths
    return {
        "input_ids": tokens.to(where),
        "attention_mask": there.to(where, torch.int64),
        "completion_mask": mask.to(where, torch.int64),
    }


class PreferenceTrainer(SupervisedTrainer):
    """Learns from pairs. The loss of a step is the mean over its pairs.

    Args:
        work: What it is made of.
    """

    def __init__(self, work: Work) -> None:
        self.objective = objective(work)
        self.pairs = PairRows(work, "train")
        splits: Any = self.pairs, PairRows(work, "validation")
        super().__init__(work.model, work.arguments(), splits=splits, **work.shared())

    def _accumulate(self, model: Any, rows: list[int]) -> tuple[float, int, int] | None:
        """Gradients of a step's pairs. Returns loss, tokens of the chosen sides found most likely (scaled to all), all tokens."""
        total = int(self.trained[rows].sum())
        sums: dict[str, float] = {}
        loss = torch.zeros((), device=self.args.device)
        try:
            for micro in micro_batches(rows, self.lengths, self.budget):
                share = len(micro) / len(rows)
                found = self._score(model, [self.pairs[row] for row in micro]) * share
                self.accelerator.backward(found)
                loss = loss + found.detach()
                self._add(sums, share)
        except (RuntimeError, MemoryError) as problem:
            if not loading.is_out_of_memory(problem):
                raise
            return None
        self.measures = {name: sums[theirs] for name, theirs in MEASURES.items()}
        return loss.item(), round(sums[TOKEN_ACCURACY] * total), total

    def _score(self, model: Any, pairs: Sequence[EncodedPair]) -> torch.Tensor:
        inputs = batch(pairs, self.pad_id, self.args.device)
        with autocast(model):
            found: torch.Tensor = self.objective.compute_loss(model, inputs)
        return found

    def _add(self, sums: dict[str, float], share: float) -> None:
        for name, value in self.objective.taken().items():
            sums[name] = sums.get(name, 0.0) + value * share

    def _weight(self, rows: list[int]) -> int:
        """What a step's loss is the mean over: pairs."""
        return len(rows)

    def _validate(self) -> dict[str, float]:
        """Score the held-out pairs, answer a few of their questions, and tell."""
        training, sums, loss = self.model.training, dict[str, float](), 0.0
        pairs: Any = self.validation
        self.model.eval()
        try:
            with torch.no_grad():
                for rows in micro_batches(range(len(pairs)), pairs.lengths, self.budget):
                    if self.watch.signalled:
                        return {}
                    share = len(rows) / len(pairs)
                    loss += self._score(self.model, [pairs[row] for row in rows]).item() * share
                    self._add(sums, share)
        finally:
            self.model.train(training)
        measures = {name: sums[theirs] for name, theirs in MEASURES.items()}
        self.teller.evaluated(self.state.global_step, loss, sums[TOKEN_ACCURACY], self._samples(), **measures)
        return {"eval_loss": loss}


def make(work: Work) -> PreferenceTrainer:
    """The trainer of preferences."""
    return PreferenceTrainer(work)
