"""Micro-batches for the memory there is: resolved before the training, which they do not change."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from finetune.config import Hyperparameters
from finetune.data import prepare
from finetune.estimate.memory import RUNTIME, TOKENS
from finetune.steps import PrepareStep, Resolved, Room
from tests.finetune.train.conftest import Bench
from tests.finetune.train.test_interruptions import inject

pytestmark = pytest.mark.train

RUNTIME_BYTES = int(RUNTIME["ram"][1])


def resolved(made: Bench, name: str, size: int | None, **asked: Any) -> Resolved:
    """Prepare the rows of `made` again for a machine with so much memory; the bench has them from then on."""
    step = PrepareStep(
        data={},  # type: ignore[arg-type]
        hyperparameters=Hyperparameters(n_epochs=1, batch_size=14, learning_rate=0.01, **asked),
        room=Room(kind="cpu", bytes=size),
        seed=7,
        cache_dir=str(made.root / "cache"),
    )
    inputs = {"data": made.root / "data", "base": made.base, "base_info": made.inputs["base_info"]}
    (made.root / name).mkdir(exist_ok=True)
    prepare.run(step, inputs, made.root / name)
    made.inputs["prepared"] = made.root / name / "prepared"
    return made.resolved


def test_resolved_json_says_how_it_is_cut_and_the_training_is_the_same(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(n_epochs=1, batch_size=14)
    assert (made.resolved.micro_batch_tokens, made.resolved.gradient_checkpointing) == (TOKENS["cpu"], False)
    widest: list[int] = []

    def look(_model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            widest.append(kwargs["input_ids"].numel())

    inject(monkeypatch, lambda model: model.register_forward_pre_hook(look, with_kwargs=True))
    made.train("roomy")
    tight = resolved(made, "tight", RUNTIME_BYTES + 6_000_000)
    assert (tight.micro_batch_tokens, tight.gradient_checkpointing) == (256, False)
    assert max(widest) > 256
    widest.clear()
    made.train("tight")
    assert max(widest) <= 256
    short = resolved(made, "short", RUNTIME_BYTES)
    assert (short.micro_batch_tokens, short.gradient_checkpointing) == (256, True)
    assert json.loads((made.root / "short" / "prepare.report.json").read_text())["data"]["estimate"]["warnings"]
    made.train("short")
    losses = {name: [line["loss"] for line in made.lines(name, "step")] for name in ("roomy", "tight", "short")}
    assert losses["tight"] == pytest.approx(losses["roomy"], rel=1e-4)
    assert losses["short"] == pytest.approx(losses["roomy"], rel=1e-4)
    assert "computed twice" in made.lines("short", "notice")[0]["message"]
    assert not made.lines("tight", "notice")


def test_where_memory_is_not_known_before_the_training_looks_itself(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=1)
    unknown = resolved(made, "unknown", None)
    assert unknown.micro_batch_tokens is None
    assert "micro_batch_tokens" not in unknown.text()
    made.train("unknown")
    assert len(made.lines("unknown", "step")) == unknown.total_steps
