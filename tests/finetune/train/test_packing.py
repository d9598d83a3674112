"""Training with several examples a line: the same training as without, wherever it is broken off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from finetune.config import Hyperparameters, JobSpec, Lora
from finetune.data import prepare
from finetune.estimate import reckon
from finetune.exit_codes import StepError
from finetune.steps import PrepareStep
from tests.finetune.train.conftest import HELD_OUT, ROWS, Bench, chat
from tests.finetune.train.test_interruptions import inject, short_of_memory
from tests.finetune.train.test_techniques import broken_after

pytestmark = pytest.mark.train

MIXED = [*ROWS[:7], *(chat("long" * 20, f"answer {n} " * (9 + n)) for n in range(4))]
"""Short rows, and rows in whose length several short ones fit."""


def lines_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Lines and examples of every micro-batch that is trained from now on, filled up ends not counted."""
    seen: list[tuple[int, int]] = []

    def look(_model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and (positions := kwargs.get("position_ids")) is not None:
            seen.append((len(positions), int((positions == 0).sum())))

    inject(monkeypatch, lambda model: model.register_forward_pre_hook(look, with_kwargs=True))
    return seen


def test_the_losses_and_the_weights_are_those_of_the_training_without(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(MIXED, HELD_OUT, batch_size=6)
    assert not made.resolved.packing
    made.train("apart")
    seen = lines_seen(monkeypatch)
    made = bench(MIXED, HELD_OUT, batch_size=6, packing=True)
    assert made.resolved.packing
    made.train("packed")
    apart, packed = made.lines("apart", "step"), made.lines("packed", "step")
    assert [line["loss"] for line in packed] == pytest.approx([line["loss"] for line in apart], rel=1e-4)
    for name in ("tokens", "train_accuracy", "learning_rate"):
        assert [line[name] for line in packed] == [line[name] for line in apart]
    assert made.lines("packed", "evaluation")[-1]["valid_loss"] == pytest.approx(
        made.lines("apart", "evaluation")[-1]["valid_loss"], rel=1e-4
    )
    one, other = load(made.weights("apart")), load(made.weights("packed"))
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-3, atol=1e-4, msg=key)
    assert sum(examples for _, examples in seen) > sum(lines for lines, _ in seen)


def test_broken_off_and_taken_up_it_gives_the_undisturbed_bytes(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(MIXED, [], lora=Lora(r=4, dropout=0.1), packing=True, batch_size=6, save_steps=2)
    with monkeypatch.context() as patch:
        inject(patch, lambda model: model.model.layers[0].register_forward_pre_hook(broken_after(3)))
        with pytest.raises(InterruptedError):
            made.train("broken")
    made.train("broken")
    made.train("whole")
    assert made.lines("broken", "start")[1]["resumed_from"] == 2
    assert made.weights("broken") == made.weights("whole")


def test_when_memory_runs_out_fewer_lines_go_together(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(MIXED, [], packing=True, n_epochs=1, batch_size=11)
    whole = made.train("whole")
    longest = made.resolved.longest
    inject(monkeypatch, lambda model: model.register_forward_pre_hook(short_of_memory(2 * longest), with_kwargs=True))
    cut = made.train("cut")
    assert cut.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert made.lines("cut", "notice")[0]["message"].startswith("Memory ran out in step 1: going on with micro-batches")


def test_a_base_that_carries_a_state_is_refused_before_anything_is_trained(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    made = bench()
    base = tmp_path / "stateful"
    shutil.copytree(made.base, base)
    config = json.loads((base / "config.json").read_text()) | {"model_type": "mamba2"}
    (base / "config.json").write_text(json.dumps(config))
    asked = PrepareStep(data={}, hyperparameters=Hyperparameters(packing=True), seed=7, cache_dir=str(tmp_path))  # type: ignore[arg-type]
    inputs = {"data": tmp_path / "data", "base": base, "base_info": made.inputs["base_info"]}
    with pytest.raises(StepError, match="'mamba2' carries a state from each example into the next") as refusal:
        prepare.run(asked, inputs, tmp_path / "out")
    assert refusal.value.param == "hyperparameters.packing"
    spec = JobSpec(model="m", training_file="t", hyperparameters=Hyperparameters(packing=True))
    with pytest.raises(StepError, match="mamba2"):
        reckon.require(spec, base)
    reckon.require(spec, made.base)
