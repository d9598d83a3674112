"""Kernels that are asked for: refused with a sentence where they cannot be had, the same training where they can."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.exit_codes import StepError
from finetune.train import computing
from tests.finetune.train.conftest import Bench
from tests.finetune.train.test_interruptions import inject

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


def test_liger_where_it_is_not_ends_before_the_base_is_loaded(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench()
    inject(monkeypatch, lambda _model: pytest.fail("the base was loaded"))
    with pytest.raises(StepError, match=r"execution.kernels='liger' needs .*, or leave it out\.") as refusal:
        made.train("liger", kernels="liger")
    assert (refusal.value.code.name, refusal.value.param) == ("unsupported_operation", "execution.kernels")
    if importlib.util.find_spec("liger_kernel") is None:
        assert (
            "needs the package liger-kernel, which is not installed here. Install llamaflow[gpu]"
            in refusal.value.message
        )


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepError, match="needs a C\\+\\+ compiler on a CPU"):
        computing.require("compile", CPU)
    computing.require("auto", CPU)


def test_our_logits_stay_ours_with_liger() -> None:
    assert computing.liger("liger")["liger_kernel_config"] == {
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    assert computing.liger("auto") == computing.liger("compile") == {}


def test_every_layer_of_a_model_is_compiled_and_nothing_by_default(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(n_epochs=1)
    seen: list[Any] = []
    inject(monkeypatch, seen.append)
    made.train("plain")
    assert not any(layer._compiled_call_impl for layer in seen[0].modules())
    assert computing.compile_layers(seen[0]) == 2
    compiled = [name for name, layer in seen[0].named_modules() if layer._compiled_call_impl]
    assert compiled == ["model.layers.0", "model.layers.1"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.timeout(1200)
def test_a_compiled_training_has_the_losses_of_a_plain_one(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=1)
    made.train("plain")
    made.train("compiled", kernels="compile")
    plain, compiled = ([line["loss"] for line in made.lines(name, "step")] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)
