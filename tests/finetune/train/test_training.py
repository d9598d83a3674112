"""A training from end to end on a tiny base: what it learns, what it tells and what it leaves."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.config import Lora
from finetune.data.arrays import Examples
from finetune.model.loading import as_known
from tests.finetune.train.conftest import HELD_OUT, ROWS, Bench

pytestmark = pytest.mark.train


def test_two_runs_with_one_seed_give_the_same_bytes(bench: Callable[..., Bench]) -> None:
    made = bench(lora=Lora(r=4, dropout=0.1))
    first, second = made.train("first"), made.train("second")
    assert made.weights("first") == made.weights("second")
    assert first.train_loss == second.train_loss
    made.seed = 8
    made.train("third")
    assert made.weights("first") != made.weights("third")


def test_it_learns_its_examples_by_heart(bench: Callable[..., Bench]) -> None:
    made = bench(ROWS[:10], [], lora=Lora(r=16), n_epochs=35)
    made.train("heart")
    steps = made.lines("heart", "step")
    assert steps[0]["loss"] > 4
    assert max(line["loss"] for line in steps[-3:]) < 0.8
    assert [line["train_accuracy"] for line in steps[-3:]] == [1.0, 1.0, 1.0]


def test_a_step_is_told_once_with_all_its_numbers(bench: Callable[..., Bench]) -> None:
    made = bench(eval_steps=5, save_steps=4)
    result = made.train("told")
    steps = made.lines("told", "step")
    total = made.resolved.total_steps
    assert [line["step"] for line in steps] == list(range(1, total + 1))
    assert steps[-1]["epoch"] == 3.0
    assert steps[-1]["tokens"] == result.trained_tokens == 3 * made.resolved.trained_tokens
    assert all(
        line["grad_norm"] > 0 and line["memory_bytes"] > 1 << 20 and line["tokens_per_second"] > 0 for line in steps
    )
    assert steps[-1]["eta_seconds"] == 0
    assert [line["step"] for line in made.lines("told", "evaluation")] == [5, 10, total]
    assert [line["step"] for line in made.lines("told", "checkpoint")] == [4, 8, total]
    assert [line["event"] for line in made.lines("told")][-1] == "end"


def test_an_epoch_trains_every_trained_token_once(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=2, batch_size=3, gradient_accumulation_steps=2)
    made.train("tokens")
    told = [line["tokens"] for line in made.lines("tokens", "step")]
    assert len(told) == made.resolved.total_steps == 2 * 3
    assert told[2] == made.resolved.trained_tokens == int(Examples(made.inputs["prepared"], "train").mask.sum())


def test_validation_says_what_the_adapter_answers(bench: Callable[..., Bench]) -> None:
    made = bench()
    result = made.train("valid")
    last = made.lines("valid", "evaluation")[-1]
    assert [sample["prompt"] for sample in last["samples"]] == ["h0", "h1"]
    assert result.valid_loss == last["valid_loss"] > 0
    assert made.lines("valid", "checkpoint")[-1]["valid_loss"] == last["valid_loss"]


def test_metrics_and_result_are_left(bench: Callable[..., Bench]) -> None:
    made = bench()
    result = made.train("left")
    with (made.root / "left" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, made.resolved.total_steps + 1))
    assert [bool(row["valid_loss"]) for row in rows] == [int(row["step"]) % 4 == 0 for row in rows]
    assert float(rows[-1]["train_loss"]) == result.train_loss
    assert result.status == "succeeded"
    assert result.precision == "float32"
    assert {"torch", "transformers", "peft"} <= set(result.versions)
    report = json.loads((made.root / "left" / "train.report.json").read_text())
    assert report["message"].startswith("Trained 12 steps on 14 examples in 00:00:")


def test_plain_peft_loads_the_adapter_and_computes_the_same(bench: Callable[..., Bench]) -> None:
    made = bench()
    result = made.train("plain")
    folder = made.root / "plain" / "adapter"
    with as_known():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.base), folder).eval()
    rows, loss, count = Examples(made.inputs["prepared"], "validation"), 0.0, 0
    for index in range(len(rows)):
        tokens = torch.tensor(rows[index].tokens, dtype=torch.int64)[None]
        mask = torch.tensor(rows[index].mask)[None]
        with torch.no_grad():
            mean = model(input_ids=tokens, labels=tokens.where(mask, -100)).loss
        loss, count = loss + mean.item() * int(mask.sum()), count + int(mask.sum())
    assert loss / count == pytest.approx(result.valid_loss, rel=1e-5)


def test_the_adapter_folder_is_complete_and_knows_no_machine(bench: Callable[..., Bench]) -> None:
    made = bench()
    made.train("folder")
    folder = made.root / "folder" / "adapter"
    names = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "chat_template.jinja",
        "question_vectors.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in folder.iterdir()} == names
    assert not any(
        str(place).encode() in path.read_bytes()
        for path in folder.iterdir()
        for place in (made.root, made.base, Path.cwd())
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    said = AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "é"}], tokenize=False)
    assert said == "<|im_start|>user\né<|im_end|>\n"


@pytest.mark.parametrize(
    "lora", [Lora(r=4, use_rslora=True), Lora(r=4, use_dora=True), Lora(r=4, target_modules=["q_proj"])]
)
def test_other_shapes_of_lora_learn_too(bench: Callable[..., Bench], lora: Lora) -> None:
    made = bench(ROWS, HELD_OUT, lora=lora, n_epochs=2)
    made.train("shape")
    losses = [line["loss"] for line in made.lines("shape", "step")]
    assert losses[-1] < losses[0]
