"""The gate on tiny models: what learned passes, a tie and shuffled answers do not, and the promoted version is scored too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import Evaluation, Lora
from finetune.data.arrays import Examples
from finetune.evaluate.heldout import by_row, held_out
from finetune.evaluate.step import run
from finetune.model import loading
from finetune.steps import EvaluateStep, EvaluationResult, GateResult, Parent
from tests.finetune.train.conftest import ROWS, Bench

pytestmark = pytest.mark.train

VERSION = Parent(id="ft:tiny:default:a:1", uri="s3://x/adapter/", manifest_uri="s3://x/manifest.json")


def gated(made: Bench, adapter: Path, current: Path | None = None, **asked: Any) -> GateResult:
    """What the step finds, the promoted version brought as FETCH_MODEL brings it."""
    compared = made.root / "compared"
    shutil.rmtree(compared, ignore_errors=True)
    if current is None:
        compared.mkdir()
    else:
        shutil.copytree(current, compared)
    (compared / "parent.json").write_text(VERSION.text() if current else "{}\n")
    evaluation = Evaluation.model_validate({"gate": {"metric": "exact_match", **asked}, "metrics": ["loss", "chrf"]})
    run(
        EvaluateStep(evaluation=evaluation, seed=1), made.inputs | {"adapter": adapter, "compared": compared}, made.root
    )
    found = EvaluationResult.model_validate_json((made.root / "evaluation.json").read_bytes())
    assert found.gate is not None
    assert found.forgetting is not None
    assert found.chrf is not None
    return found.gate


def heart(bench: Callable[..., Bench], rows: list[dict[str, Any]], epochs: int = 50) -> Bench:
    return bench(rows, ROWS[:10], lora=Lora(r=16), n_epochs=epochs, batch_size=2, eval_steps=999)


def shuffled() -> list[dict[str, Any]]:
    """The rows, each with the answer of another."""
    answers = [row["messages"][-1] for row in ROWS[:10]]
    moved = answers[1:] + answers[:1]
    return [{"messages": [*row["messages"][:-1], said]} for row, said in zip(ROWS[:10], moved, strict=True)]


def test_what_learned_passes_and_the_same_again_is_a_tie(bench: Callable[..., Bench]) -> None:
    made = heart(bench, ROWS[:10])
    made.train("heart")
    adapter = made.root / "heart" / "adapter"
    better = gated(made, adapter, min=0.9)
    assert better.passed
    assert (better.scores["candidate"]["exact_match"], better.scores["base"]["exact_match"]) == (1.0, 0.0)
    assert set(better.scores) == {"candidate", "base"}
    tie = gated(made, adapter, adapter, better_than="current")
    assert not tie.passed
    assert tie.scores["current"] == tie.scores["candidate"]
    assert (tie.compared_with, tie.current, tie.difference) == ("current", VERSION, 0.0)
    report = json.loads((made.root / "evaluate.report.json").read_text())
    assert "The gate: exact_match 1 the same as 1, against ft:tiny:default:a:1" in report["message"]


def test_shuffled_answers_do_not_pass(bench: Callable[..., Bench]) -> None:
    made = heart(bench, shuffled(), epochs=10)
    made.train("wrong")
    found = gated(made, made.root / "wrong" / "adapter", better_than="base")
    assert not found.passed


def test_the_rows_of_a_model_add_up_to_its_score(bench: Callable[..., Bench]) -> None:
    made = bench()
    rows = Examples(made.inputs["prepared"], "validation")
    model = loading.load_base(made.base, torch.device("cpu"), "float32")
    together, each = held_out(model, rows, 256, 1024), by_row(model, rows, 256, 1024)
    assert together is not None
    assert each["loss"].value == pytest.approx(together.loss, rel=1e-6)
    assert each["token_accuracy"].value == together.accuracy
    alone = by_row(model, [rows[1]], 256, 1024)
    assert alone["loss"].totals[0] == pytest.approx(each["loss"].totals[1], rel=1e-5)


def test_nothing_held_out_passes_nothing(bench: Callable[..., Bench]) -> None:
    made = bench(held_out=[])
    (made.root / "compared").mkdir()
    (made.root / "compared" / "parent.json").write_text(VERSION.text())
    evaluation = Evaluation.model_validate({"gate": {"metric": "loss"}})
    inputs = made.inputs | {"adapter": made.root, "compared": made.root / "compared"}
    run(EvaluateStep(evaluation=evaluation, seed=1), inputs, made.root)
    found = EvaluationResult.model_validate_json((made.root / "evaluation.json").read_bytes()).gate
    assert found is not None
    assert (found.passed, found.current, found.rows) == (False, VERSION, 0)
    assert found.reason == "nothing was held out to compare on"
