"""What is loaded and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.config import Lora
from finetune.exit_codes import StepError
from finetune.model import loading

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Path:
    """A base to spoil."""
    return Path(shutil.copytree(base, tmp_path / "copied"))


def refused(folder: Path) -> str:
    """Why a base is refused."""
    with pytest.raises(StepError) as failure:
        loading.load_base(folder, CPU, "float32")
    assert failure.value.code.name == "unsupported_model"
    assert failure.value.param == "model"
    return failure.value.message


def test_pickled_weights_are_refused_unread(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "pickled weights (pytorch_model.bin)" in refused(copied)


def test_code_that_comes_with_a_model_is_never_run(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "brings code of its own, which is never run" in refused(copied)
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_not_there_are_not_made_up(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused(copied)


def test_half_a_file_is_refused(copied: Path) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded" in refused(copied)


def test_the_adapters_weights_depend_on_the_seed_alone(base: Path) -> None:
    def drawn(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        model = loading.add_lora(loading.load_base(base, CPU, "float32"), Lora(), seed)
        return torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.requires_grad])

    assert torch.equal(drawn(5, before=1), drawn(5, before=2))
    assert not torch.equal(drawn(5, before=1), drawn(6, before=1))


def test_the_adapter_is_float32_on_a_bfloat16_base_and_spares_the_output_layer(base: Path) -> None:
    model = loading.add_lora(loading.load_base(base, CPU, "bfloat16"), Lora(), 0)
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert model.dtype == torch.bfloat16
    assert len(trained) == 2 * 7 * 2
    assert not any("lm_head" in name for name in trained)


def test_layers_the_base_does_not_have_are_named(base: Path) -> None:
    with pytest.raises(StepError, match="no_such_layer") as failure:
        loading.add_lora(loading.load_base(base, CPU, "float32"), Lora(target_modules=["no_such_layer"]), 0)
    assert failure.value.code.name == "unsupported_model"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [("fpu avx512_bf16 sse", "bfloat16"), ("fpu avx512f avx2", "float32"), ("fp asimd bf16", "bfloat16")],
)
def test_bfloat16_is_taken_where_the_processor_multiplies_it(
    flags: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert loading.precision(CPU, tmp_path / "cpuinfo") == "float32"
    monkeypatch.setenv("LLAMAFLOW_FP32", "0")
    assert loading.precision(CPU, tmp_path / "cpuinfo") == kind
    assert loading.precision(CPU, tmp_path / "nothing") == "float32"
