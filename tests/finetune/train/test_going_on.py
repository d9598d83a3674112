"""Going on from an adapter: its weights and shape are the beginning, its base must be the same, and the result names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune.config import Lora
from finetune.exit_codes import StepError
from finetune.model import loading
from finetune.steps import Parent, Result
from tests.finetune.train.conftest import PAIRS, Bench, build_base
from tests.finetune.train.test_techniques import held_out_loss

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
PARENT = Parent(id="ft:tiny:p:first:1", uri="s3://b/1/adapter/", manifest_uri="s3://b/1/manifest.json")


def leads_on(made: Bench, name: str) -> Result:
    """Train an adapter and hand it on, as FETCH_MODEL does."""
    result = made.train(name)
    folder = made.root / "parent"
    shutil.copytree(made.root / name / "adapter", folder)
    (folder / "parent.json").write_text(PARENT.text())
    made.inputs["parent"] = folder
    return result


@pytest.mark.parametrize("technique", ["lora", "qlora"])
def test_it_starts_at_the_loss_of_the_adapter_and_names_it(bench: Callable[..., Bench], technique: str) -> None:
    made = bench(n_epochs=4, learning_rate=0.02, technique=technique)
    first = leads_on(made, "first")
    made.lora = Lora(r=16)
    model = loading.load_base(made.base, CPU, "float32", technique == "qlora")
    beginning = loading.go_on(model, made.inputs["parent"], made.lora, 7).eval()
    assert held_out_loss(beginning, made) == pytest.approx(first.valid_loss, rel=1e-5)
    second = made.train("second")
    steps = {name: made.lines(name, "step") for name in ("first", "second")}
    assert steps["second"][0]["loss"] < 0.7 * steps["first"][0]["loss"]
    assert second.parent == PARENT
    assert second.train_key != first.train_key
    config = json.loads((made.root / "second" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert made.lines("second", "notice")[0]["message"].startswith("Going on from ft:tiny:p:first:1")
    card = (made.root / "second" / "adapter" / "README.md").read_text()
    assert "| Goes on from | `ft:tiny:p:first:1` |" in card
    assert "| LoRA | rank 4, " in card


def test_killed_and_resumed_it_goes_on_from_its_own_checkpoint(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=2, save_steps=3, eval_steps=8)
    leads_on(made, "first")
    made.train("second")
    whole = made.weights("second")
    (made.state("second") / "result.json").unlink()
    for step in (6, 8):
        shutil.rmtree(made.state("second") / f"checkpoint-{step}")
    made.train("second")
    assert made.lines("second", "start")[1]["resumed_from"] == 3
    assert made.weights("second") == whole


def test_preferences_take_the_adapter_for_their_reference(bench: Callable[..., Bench]) -> None:
    made = bench(PAIRS, PAIRS[:2], method="dpo", n_epochs=2, learning_rate=0.003)
    leads_on(made, "first")
    made.train("second")
    first, second = made.lines("first", "step"), made.lines("second", "step")
    assert first[-1]["loss"] < 0.69
    assert second[0]["loss"] == pytest.approx(first[0]["loss"], abs=1e-5)
    assert second[0]["rewards_margin"] == pytest.approx(0, abs=1e-5)
    assert second[-1]["rewards_margin"] > 0
    assert {path.name for path in (made.root / "second" / "adapter").iterdir() if path.is_dir()} == set()


def test_an_adapter_of_another_base_is_refused(bench: Callable[..., Bench], tmp_path: Path) -> None:
    made = bench(n_epochs=1)
    leads_on(made, "first")
    config = json.loads((made.base / "config.json").read_text())
    other = build_base(tmp_path / "other", hidden_size=64)
    assert json.loads((other / "config.json").read_text())["hidden_size"] != config["hidden_size"]
    made.inputs["base"] = other
    with pytest.raises(StepError, match="to go on from does not fit its base") as failure:
        made.train("second")
    assert failure.value.code.name == "manifest_mismatch"


def test_all_weights_cannot_go_on_from_an_adapter(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=1)
    leads_on(made, "first")
    made.fields["technique"] = "full"
    with pytest.raises(StepError, match="cannot go on from an adapter") as failure:
        made.train("second")
    assert failure.value.param == "technique"
