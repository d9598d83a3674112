"""Every family through the real steps: fetch, prepare, train, pause and resume, evaluate, merge, ask.

Two families by default; the others are marked slow.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.__main__ import main
from finetune.data.arrays import Examples
from finetune.data.template import PLAIN
from finetune.model import loading
from tests.finetune.golden.families import FAMILIES
from tests.finetune.matrix.shapes import MIXTURES, SHAPES, Make

DEFAULT = {"gemma2", "deepseek_v3"}
PAUSED = 80
STEPS = 12

pytestmark = pytest.mark.train


def row(question: str, answer: str) -> dict[str, Any]:
    """A row of one question."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [row(f"What is {n}?" + " And?" * (n % 5 * 4), f"It is {n}." * (1 + n % 3)) for n in range(12)]
HELD_OUT = [row(f"Is it {n}?", f"It is {n}.") for n in range(3)]


@dataclass(frozen=True)
class Chain:
    """The steps of one job on a base, in a folder."""

    base: Path
    root: Path

    def step(self, name: str, inputs: dict[str, str], out: str = "out", **fields: Any) -> int:
        """Run a step by its file; its exit status."""
        (self.root / f"{name}.json").write_text(json.dumps(fields))
        given = [part for key, place in inputs.items() for part in ("--in", f"{key}={self.root / place}")]
        return main([name, "--job", str(self.root / f"{name}.json"), *given, "--out", str(self.root / out)])

    def fetch(self) -> int:
        """The base, from its folder."""
        source = {"id": "tiny", "kind": "path", "location": str(self.base)}
        return self.step("fetch", {}, model=source, cache_dir=str(self.root / "cache"))

    def prepare(self) -> int:
        """Tokens and masks."""
        for split, rows in (("train", ROWS), ("validation", HELD_OUT)):
            (self.root / "data" / split).mkdir(parents=True)
            (self.root / "data" / split / "1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = {"n_epochs": 4, "batch_size": 4, "learning_rate": 0.01}
        return self.step(
            "prepare",
            {"data": "data", "base": "out/base", "base_info": "out/base.json"},
            data={}, hyperparameters=asked, seed=7, cache_dir=str(self.root / "cache"),
        )  # fmt: skip

    def train(self, name: str) -> int:
        """A training in a folder of its own."""
        inputs = {"prepared": "out/prepared", "base": "out/base", "base_info": "out/base.json"}
        state = str(self.root / name / "train")
        return self.step("train", inputs, out=name, lora={"r": 4, "dropout": 0.0}, seed=7, state_dir=state)

    def evaluate(self, name: str) -> dict[str, Any]:
        """evaluation.json of a training."""
        inputs = {"prepared": "out/prepared", "base": "out/base", "base_info": "out/base.json"}
        asked = {"metrics": ["loss", "token_accuracy", "exact_match"]}
        status = self.step("evaluate", inputs | {"adapter": f"{name}/adapter"}, evaluation=asked, seed=7)
        assert status == 0
        return json.loads((self.root / "out" / "evaluation.json").read_text())  # type: ignore[no-any-return]

    def merge(self, name: str) -> dict[str, Any]:
        """export.json of a training's merged model."""
        inputs = {"prepared": "out/prepared", "base": "out/base", "adapter": f"{name}/adapter"}
        given = [part for key, place in inputs.items() for part in ("--in", f"{key}={self.root / place}")]
        assert main(["export", "--merge", *given, "--out", str(self.root / "out")]) == 0
        return json.loads((self.root / "out" / "exported" / "export.json").read_text())  # type: ignore[no-any-return]

    def ask(self, base: Path, *more: str) -> int:
        """One question on the console."""
        return main(["infer", "--base", str(base), *more, "--prompt", "Is it 1?", "--max-tokens", "12"])

    def loss(self, model: Any) -> float:
        """Mean loss of the held-out rows by the model's own arithmetic, each row alone."""
        rows, total, count = Examples(self.root / "out" / "prepared", "validation"), 0.0, 0
        for index in range(len(rows)):
            tokens = torch.tensor(rows[index].tokens, dtype=torch.int64)[None]
            mask = torch.tensor(rows[index].mask)[None]
            with torch.no_grad():
                mean = model(input_ids=tokens, labels=tokens.where(mask, -100)).loss
            total, count = total + mean.item() * int(mask.sum()), count + int(mask.sum())
        return total / count


@pytest.fixture
def chain(tmp_path: Path, base_of: Make) -> Callable[[str], Chain]:
    """The steps on a family's base."""
    return lambda name: Chain(base_of(name), tmp_path)


def weights(chain: Chain, name: str) -> bytes:
    """What a training left."""
    return (chain.root / name / "adapter" / "adapter_model.safetensors").read_bytes()


def families() -> list[Any]:
    """All, most of them slow."""
    return [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in SHAPES]


@pytest.mark.parametrize("name", families())
def test_a_family_goes_through_every_step(
    name: str, chain: Callable[[str], Chain], capsys: pytest.CaptureFixture[str]
) -> None:
    made = chain(name)
    assert (made.fetch(), made.prepare()) == (0, 0)
    (made.root / "once" / "train").mkdir(parents=True)
    (made.root / "once" / "train" / "control.json").write_text('{"intent": "pause"}')
    assert made.train("once") == PAUSED
    assert (made.train("once"), made.train("other")) == (0, 0)
    assert weights(made, "once") == weights(made, "other")

    told = json.loads((made.root / "once" / "result.json").read_text())
    assert (told["status"], told["steps"]) == ("succeeded", STEPS)
    found = made.evaluate("once")
    assert found["loss"] < found["base_loss"]
    adapted = loading.load_adapter(
        loading.load_base(made.base, torch.device("cpu"), "float32"), made.root / "once" / "adapter"
    )
    assert made.loss(adapted) == pytest.approx(found["loss"], rel=1e-4)
    with adapted.disable_adapter():
        assert made.loss(adapted) == pytest.approx(found["base_loss"], rel=1e-4)

    parity = made.merge("once")
    assert parity["same"] == 1.0
    assert parity["difference"] < 1e-3
    merged = made.root / "out" / "exported" / "merged"
    assert made.loss(loading.load_base(merged, torch.device("cpu"), "float32")) == pytest.approx(
        found["loss"], rel=1e-3
    )

    capsys.readouterr()
    assert made.ask(made.base, "--adapter", str(made.root / "once" / "adapter")) == 0
    answered = capsys.readouterr().out
    assert made.ask(merged) == 0
    assert capsys.readouterr().out == answered != ""
    template = (made.root / "once" / "adapter" / "chat_template.jinja").read_text()
    assert template == (FAMILIES[SHAPES[name].family].template if SHAPES[name].template else PLAIN)
    assert (told.get("left_out") is not None) == (name in MIXTURES)
