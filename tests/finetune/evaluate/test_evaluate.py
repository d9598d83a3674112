"""EVALUATE on a tiny adapter: its numbers, the base's beside them, and what both answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import Evaluation, Lora
from finetune.data.arrays import Examples
from finetune.data.tokenizer import load
from finetune.evaluate.answers import Question, answer, ask, read_questions
from finetune.evaluate.heldout import held_out
from finetune.evaluate.step import run
from finetune.model import loading
from finetune.steps import EvaluateStep, EvaluationResult
from tests.finetune.train.conftest import ROWS, Bench

pytestmark = pytest.mark.train

PAD = 256


def evaluate(made: Bench, adapter: Path, **asked: Any) -> EvaluationResult:
    """Run the step."""
    inputs = made.inputs | {"adapter": adapter}
    run(EvaluateStep(evaluation=Evaluation(**asked), seed=1), inputs, made.root)
    return EvaluationResult.model_validate_json((made.root / "evaluation.json").read_bytes())


def test_the_adapters_numbers_are_those_of_the_training_and_the_bases_are_the_bases(
    bench: Callable[..., Bench],
) -> None:
    made = bench()
    trained = made.train("run")
    result = evaluate(made, made.root / "run" / "adapter")
    rows = Examples(made.inputs["prepared"], "validation")
    alone = held_out(loading.load_base(made.base, torch.device("cpu"), "float32"), rows, PAD, 1024)
    assert alone is not None
    assert result.rows == 3
    assert result.loss == pytest.approx(trained.valid_loss, rel=1e-5)
    assert result.token_accuracy == trained.valid_mean_token_accuracy
    assert result.base_loss == pytest.approx(alone.loss, rel=1e-5)
    assert result.base_token_accuracy == alone.accuracy
    assert result.exact_match is None


def test_what_was_learned_by_heart_is_answered_and_the_base_does_not_know_it(bench: Callable[..., Bench]) -> None:
    made = bench(ROWS[:10], ROWS[:10], lora=Lora(r=16), n_epochs=50, batch_size=2, eval_steps=999)
    made.train("heart")
    result = evaluate(made, made.root / "heart" / "adapter", metrics=["exact_match", "contains"], prompts=["q3???"])
    assert result.exact_match == result.contains == 1.0
    assert result.loss is None
    held = [sample for sample in result.samples if sample.wanted is not None]
    assert len(held) == 8
    assert all(sample.answer == sample.wanted != sample.base for sample in held)
    assert [(sample.prompt, sample.answer) for sample in result.samples if sample.wanted is None] == [
        ("q3???", "a3" * 4)
    ]
    report = json.loads((made.root / "evaluate.report.json").read_text())
    assert report["message"] == "Evaluated on 10 held-out rows: exact match 1.00, contains 1.00; 1 prompts answered."


def test_an_adapter_of_another_base_is_refused(bench: Callable[..., Bench], tmp_path: Path) -> None:
    made = bench()
    made.train("run")
    config = made.root / "run" / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    with pytest.raises(loading.StepError) as refused:
        evaluate(made, made.root / "run" / "adapter")
    assert refused.value.code.name == "manifest_mismatch"


def test_with_nothing_held_out_and_nothing_asked_no_torch_is_needed(bench: Callable[..., Bench]) -> None:
    made = bench(held_out=[])
    (made.root / "evaluate.json").write_text(EvaluateStep(evaluation=Evaluation(), seed=1).text())
    code = "import sys; from finetune.__main__ import main; status = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(status)"
    inputs = [f"prepared={made.inputs['prepared']}", f"base={made.base}", f"adapter={made.root}"]
    given = [part for name in inputs for part in ("--in", name)]
    job = ["evaluate", "--job", str(made.root / "evaluate.json"), "--out", str(made.root)]
    subprocess.run([sys.executable, "-c", code, *job, *given], check=True)
    assert EvaluationResult.model_validate_json((made.root / "evaluation.json").read_bytes()) == EvaluationResult(
        rows=0
    )


def test_answers_given_together_are_those_given_alone(bench: Callable[..., Bench]) -> None:
    made = bench()
    tokenizer = load(made.base)
    model = loading.load_base(made.base, torch.device("cpu"), "float32").train()
    questions = [ask(text, tokenizer) for text in ("a", "a much longer question than the first", "bcd")]
    together = answer(model, tokenizer, questions, limit=12)
    assert together == [answer(model, tokenizer, [question], limit=12)[0] for question in questions]
    assert model.training


def test_questions_are_taken_evenly_and_prompts_need_no_chat(bench: Callable[..., Bench], tmp_path: Path) -> None:
    tokenizer = load(bench().base)
    lines = [{"prompt": f"p{n}", "wanted": str(n)} for n in range(9)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    taken = read_questions(tmp_path / "samples.jsonl", tokenizer, 3)
    assert [question.shown for question in taken] == ["p0", "p3", "p6"]
    assert taken[1] == Question("p3", tokenizer.ids("p3"), "3")
    assert read_questions(tmp_path / "nothing.jsonl", tokenizer, 3) == []
