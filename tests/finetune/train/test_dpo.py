"""Preference training: TRL's loss, the right reference, rewards that grow, and everything a training promises otherwise."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from trl import DPOConfig, DPOTrainer

from finetune.config import Evaluation, Lora
from finetune.data.arrays import EncodedPair, Pairs
from finetune.data.tokenizer import load
from finetune.evaluate import step as evaluate
from finetune.exit_codes import StepError
from finetune.model import loading
from finetune.steps import EvaluateStep, EvaluationResult
from finetune.train.preference import batch, library_tokenizer
from tests.finetune.train.conftest import PAIRS, Bench
from tests.finetune.train.test_ending import Terminal
from tests.finetune.train.test_interruptions import inject
from tests.finetune.train.test_techniques import broken_after

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
DPO: dict[str, Any] = {"method": "dpo", "held_out": PAIRS[:3], "learning_rate": 0.003}


def test_rewards_part_and_the_first_step_starts_at_the_reference(bench: Callable[..., Bench]) -> None:
    made = bench(PAIRS, n_epochs=8, **DPO)
    result = made.train("dpo")
    steps = made.lines("dpo", "step")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[0]["rewards_margin"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["rewards_margin"] > 0.5
    assert steps[-1]["rewards_accuracy"] == 1.0
    assert steps[-1]["loss"] < 0.6
    assert [line["rewards_margin"] > 0 for line in made.lines("dpo", "evaluation")][-1]
    assert result.trained_tokens == 8 * made.resolved.trained_tokens
    with (made.root / "dpo" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["rewards_margin"]) == steps[-1]["rewards_margin"]
    names = {path.name for path in (made.root / "dpo" / "adapter").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "ref" not in names


@pytest.mark.parametrize("kind", [{"lora": Lora(r=4)}, {"technique": "full", "learning_rate": 0.0003}])
def test_broken_off_and_taken_up_it_gives_the_undisturbed_bytes(
    bench: Callable[..., Bench], kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(PAIRS, n_epochs=2, save_steps=2, eval_steps=6, **DPO | kind)
    with monkeypatch.context() as patch:
        inject(patch, lambda model: model.model.layers[0].register_forward_pre_hook(broken_after(3)))
        with pytest.raises(InterruptedError):
            made.train("broken")
    made.train("broken")
    made.train("whole")
    assert made.lines("broken", "start")[1]["resumed_from"] == 2
    assert made.weights("broken") == made.weights("whole")


def test_what_is_told_is_the_formulas_and_trls_with_the_base_as_reference(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    made = bench(PAIRS, n_epochs=2, beta=0.3, **DPO)
    made.train("seen")
    model = loading.load_adapter(loading.load_base(made.base, CPU, "float32"), made.root / "seen" / "adapter")
    held_out = Pairs(made.inputs["prepared"], "validation")
    pairs = [held_out[index] for index in range(len(held_out))]
    inputs = batch(pairs, pad_id=256, where=CPU)
    with torch.no_grad():
        policy = log_probabilities(model, inputs)
        with model.disable_adapter():
            reference = log_probabilities(model, inputs)
    chosen, rejected = (policy - reference).chunk(2)
    loss = -functional.logsigmoid(0.3 * (chosen - rejected)).mean().item()
    assert abs(loss - math.log(2)) > 0.01
    told = made.lines("seen", "evaluation")[-1]
    assert told["valid_loss"] == pytest.approx(loss, rel=1e-5)
    assert told["rewards_margin"] == pytest.approx(0.3 * (chosen - rejected).mean().item(), rel=1e-4)
    assert stock_loss(made, pairs, tmp_path) == pytest.approx(loss, rel=1e-5)


def stock_loss(made: Bench, pairs: list[EncodedPair], folder: Path) -> float:
    """What TRL as it is computes for pairs: its own trainer, collator and tokenised rows, the base as its reference model."""
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    config = DPOConfig(
        str(folder / "stock"), beta=0.3, max_length=None, bf16=False, use_cpu=True, report_to="none",
        gradient_checkpointing=None, activation_checkpointing=False,
    )  # fmt: skip
    base = loading.load_base(made.base, CPU, "float32")
    with loading.as_known():
        trainer = DPOTrainer(
            loading.load_adapter(base, made.root / "seen" / "adapter"),
            ref_model=loading.load_base(made.base, CPU, "float32"),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=library_tokenizer(load(made.base)),
        )
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.data_collator([tokenised(pair) for pair in pairs]))
    return float(loss)


def tokenised(pair: EncodedPair) -> dict[str, list[int]]:
    """A pair as TRL's collator takes it: what follows the end of a turn is no part of its answer."""
    begin = int(pair.chosen.mask.argmax())
    ends = [int(side.mask.nonzero()[0][-1]) + 1 for side in (pair.chosen, pair.rejected)]
    return {
        "prompt_ids": pair.chosen.tokens[:begin].tolist(),
        "chosen_ids": pair.chosen.tokens[begin : ends[0]].tolist(),
        "rejected_ids": pair.rejected.tokens[begin : ends[1]].tolist(),
    }


def log_probabilities(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of each row's trained tokens together, shape (rows,), by the plain library."""
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1].log_softmax(-1)
    each = logits.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return (each * inputs["completion_mask"][:, 1:]).sum(1)


def test_preferences_over_a_base_in_four_bits_start_at_their_reference(bench: Callable[..., Bench]) -> None:
    made = bench(PAIRS, n_epochs=2, technique="qlora", **DPO)
    made.train("four")
    steps = made.lines("four", "step")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert steps[-1]["rewards_margin"] > 0


def test_a_validation_that_is_broken_off_tells_nothing_and_asks_no_questions(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(PAIRS, n_epochs=2, **DPO)

    def stop(norm: Any, _args: Any) -> None:
        if not norm.training:
            os.kill(os.getpid(), signal.SIGTERM)

    inject(monkeypatch, lambda model: model.model.norm.register_forward_pre_hook(stop))
    with pytest.raises(StepError, match="was asked to stop"):
        made.train("stopped")
    assert not [line for line in made.lines("stopped", "evaluation") if line["samples"]]


def test_a_person_who_watches_sees_answers_to_the_questions_of_pairs_appear(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(PAIRS, n_epochs=1, **DPO)
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    made.train("watched")
    samples = made.lines("watched", "evaluation")[-1]["samples"]
    assert samples
    assert all(f"? {sample['prompt']}\n  ! {sample['answer']}" in shown.getvalue() for sample in samples)


@pytest.mark.parametrize("kind", [{"lora": Lora(r=4)}, {"technique": "full", "learning_rate": 0.0003}])
def test_evaluate_finds_the_rewards_that_the_training_told(bench: Callable[..., Bench], kind: dict[str, Any]) -> None:
    made = bench(PAIRS, n_epochs=2, beta=0.3, **DPO | kind)
    made.train("told")
    product = made.root / "told" / ("model" if "technique" in kind else "adapter")
    asked = EvaluateStep(evaluation=Evaluation(metrics=["loss"]), seed=1)
    evaluate.run(asked, {**made.inputs, "adapter": product}, made.root)
    found = EvaluationResult.model_validate_json((made.root / "evaluation.json").read_bytes()).rewards
    last = made.lines("told", "evaluation")[-1]
    assert found is not None
    for name in ("accuracy", "margin", "chosen", "rejected"):
        assert found[name] == pytest.approx(last[f"rewards_{name}"], rel=1e-3, abs=1e-5)
    report = json.loads((made.root / "evaluate.report.json").read_text())["message"]
    assert f"rewards accuracy {found['accuracy']:.2f}, rewards margin {found['margin']:.2f}" in report
