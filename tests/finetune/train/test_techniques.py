"""Every technique learns, goes on after a break with the same bytes, and leaves what plain libraries load."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune.config import MAKES, Lora
from finetune.config import Technique as Name
from finetune.data.arrays import Examples
from finetune.exit_codes import StepError
from finetune.model import loading
from finetune.train.loss import score
from finetune.train.techniques import TECHNIQUES, Ground
from tests.finetune.train.conftest import ROWS, Bench
from tests.finetune.train.test_interruptions import inject

pytestmark = pytest.mark.train

KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"lora": Lora(r=4, use_rslora=True)},
    "dora": {"lora": Lora(r=4, use_dora=True)},
    "qlora": {"technique": "qlora"},
    "qdora": {"technique": "qlora", "lora": Lora(r=4, use_dora=True)},
    "full": {"technique": "full", "learning_rate": 0.003},
    "trl": {"backend": "trl"},
}
SHORT = {"n_epochs": 2, "save_steps": 3, "eval_steps": 8}


def test_the_table_knows_every_technique() -> None:
    assert set(TECHNIQUES) == set(get_args(Name)) == set(MAKES)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(bench: Callable[..., Bench], kind: str) -> None:
    made = bench(ROWS[:10], [], n_epochs=10, **KINDS[kind])
    made.train("learn")
    losses = [line["loss"] for line in made.lines("learn", "step")]
    assert losses[0] > 4
    assert max(losses[-3:]) < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["dora", "qlora", "full"])
def test_broken_off_and_taken_up_it_gives_the_undisturbed_bytes(
    bench: Callable[..., Bench], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(**SHORT | KINDS[kind])
    with monkeypatch.context() as patch:
        inject(patch, lambda model: model.model.layers[0].register_forward_pre_hook(broken_after(5)))
        with pytest.raises(InterruptedError):
            made.train("broken")
    made.train("broken")
    made.train("whole")
    assert made.lines("broken", "start")[1]["resumed_from"] == 3
    assert made.weights("broken") == made.weights("whole")


def test_a_checkpoint_without_the_optimisers_state_is_passed_over(bench: Callable[..., Bench]) -> None:
    made = bench(**SHORT)
    made.train("robbed")
    whole = made.weights("robbed")
    (made.state("robbed") / "result.json").unlink()
    for step in (6, 8):
        (made.state("robbed") / f"checkpoint-{step}" / "optimizer.pt").unlink()
    made.train("robbed")
    assert made.lines("robbed", "start")[1]["resumed_from"] == 3
    assert made.weights("robbed") == whole


@pytest.mark.parametrize("kind", ["rslora", "dora", "qlora"])
def test_plain_peft_loads_it_and_computes_what_was_told(bench: Callable[..., Bench], kind: str) -> None:
    made = bench(n_epochs=1, **KINDS[kind])
    result = made.train("plain")
    config = json.loads((made.root / "plain" / "adapter" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (kind == "rslora", kind == "dora")
    with loading.as_known():
        base = AutoModelForCausalLM.from_pretrained(made.base)
        model = PeftModel.from_pretrained(base, made.root / "plain" / "adapter").eval()
    loss = held_out_loss(model, made)
    if kind == "qlora":
        assert loss != result.valid_loss
    assert loss == pytest.approx(result.valid_loss, rel=0.1 if kind == "qlora" else 1e-5)


def test_the_base_of_qlora_is_held_in_four_bits(base: Path) -> None:
    model = loading.load_base(base, torch.device("cpu"), "float32", True)
    layer = model.model.layers[0].mlp.up_proj
    assert (type(layer).__name__, layer.weight.dtype) == ("Linear4bit", torch.uint8)
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)
    assert type(model.lm_head).__name__ == "Linear"


def test_without_bitsandbytes_a_sentence_names_it(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(technique="qlora")
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else known(name))
    with pytest.raises(StepError, match=r"needs the package bitsandbytes") as failure:
        made.train("without")
    assert (failure.value.code.name, failure.value.param) == ("unsupported_operation", "technique")


def test_without_unsloth_a_sentence_names_it(bench: Callable[..., Bench]) -> None:
    made = bench(backend="unsloth")
    with pytest.raises(StepError, match=r"needs the package unsloth") as failure:
        made.train("without")
    assert (failure.value.code.name, failure.value.param) == ("unsupported_operation", "execution.backend")


def test_full_leaves_a_model_that_plain_transformers_loads(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=1, **KINDS["full"])
    before = (made.base / "model.safetensors").read_bytes()
    result = made.train("full")
    folder = made.root / "full" / "model"
    assert (made.base / "model.safetensors").read_bytes() == before
    assert not (made.root / "full" / "adapter").exists()
    assert (folder / "config.json").read_bytes() == (made.base / "config.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert held_out_loss(model, made) == pytest.approx(result.valid_loss, rel=1e-5)
    said = AutoTokenizer.from_pretrained(folder).apply_chat_template([{"role": "user", "content": "é"}], tokenize=False)
    assert said == "<|im_start|>user\né<|im_end|>\n"
    places = [str(made.root).encode(), str(made.base).encode()]
    assert not any(place in path.read_bytes() for path in folder.iterdir() for place in places)


def test_full_keeps_the_number_format_of_its_base(bench: Callable[..., Bench], tmp_path: Path) -> None:
    made = bench(n_epochs=1, **KINDS["full"])
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.bfloat16).save_pretrained(half)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (half / name).write_bytes((made.base / name).read_bytes())
    made.inputs["base"] = half
    made.train("half")
    model = AutoModelForCausalLM.from_pretrained(made.root / "half" / "model", dtype="auto")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert loading.load_base(made.root / "half" / "model", torch.device("cpu"), "bfloat16").dtype == torch.bfloat16


def test_full_computes_in_bfloat16_where_that_is_quicker_and_keeps_its_weights_in_float32(base: Path) -> None:
    tokens, mask = torch.arange(40).reshape(2, 20), torch.ones((2, 20), dtype=torch.bool)
    kinds: tuple[loading.Precision, ...] = ("float32", "bfloat16")
    losses = []
    for kind in kinds:
        model = TECHNIQUES["full"].load(Ground(base, Lora(), 7, None, torch.device("cpu"), kind))
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        found = score(model, tokens, mask).loss
        found.backward()
        losses.append(found.item())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def broken_after(calls: int) -> Callable[..., None]:
    """A hook that breaks a training off in a later step, as a crash would."""
    seen: list[None] = []

    def hook(*_: Any) -> None:
        if torch.is_grad_enabled():
            seen.append(None)
        if len(seen) > calls:
            raise InterruptedError

    return hook


def held_out_loss(model: Any, made: Bench) -> float:
    """Mean over the trained tokens of the held-out rows, by the library's own loss, row by row."""
    rows, loss, count = Examples(made.inputs["prepared"], "validation"), 0.0, 0
    for index in range(len(rows)):
        tokens = torch.tensor(rows[index].tokens, dtype=torch.int64)[None]
        mask = torch.tensor(rows[index].mask)[None]
        with torch.no_grad():
            mean = model(input_ids=tokens, labels=tokens.where(mask, -100)).loss
        loss, count = loss + mean.item() * int(mask.sum()), count + int(mask.sum())
    return loss / count
