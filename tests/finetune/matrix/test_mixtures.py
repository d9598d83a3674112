"""Mixtures of experts: what of them is adapted, is said, and is served."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import DynamicCache

from finetune.config import Lora
from finetune.inference.adapters import AdapterFiles
from finetune.inference.model import LoadedBase
from finetune.model import loading, targets
from finetune.steps import Base
from finetune.train.adapter import write_weights
from tests.finetune.matrix.shapes import Make

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
TOKENS = torch.arange(10, 40)[None]


def adapter(base: Path, folder: Path, seed: int = 0) -> Path:
    """A random adapter of all layers that are adapted by default."""
    model = loading.add_lora(loading.load_base(base, CPU, "float32"), Lora(r=4), seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.1)
    info = Base(id="tiny", kind="path", location=str(base), revision="0" * 64, parameters=1000, template_sha256="")
    folder.mkdir(parents=True)
    write_weights(model, info, folder)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of some tokens."""
    with torch.inference_mode():
        return model(input_ids=TOKENS).logits[:, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "qwen3_moe"])
def test_what_is_left_out_is_told(name: str, base_of: Make) -> None:
    base = loading.load_base(base_of(name), CPU, "float32")
    layers = 2 if name == "qwen3_moe" else 1
    assert targets.left_out(base) is None  # trained whole
    told = targets.left_out(loading.add_lora(base, Lora(r=4), 0))
    assert told is not None
    assert told.startswith(
        f"{layers} layers hold their 4 routed experts as single parameters: "
        "the adapter leaves these and their routers as they are."
    )
    assert ("set base.config.model_type" in told) == name.startswith("deepseek")


def test_a_model_without_experts_leaves_nothing_out(base_of: Make) -> None:
    assert targets.left_out(loading.add_lora(loading.load_base(base_of("llama"), CPU, "float32"), Lora(), 0)) is None


def test_layers_asked_for_by_name_are_those_of_shared_experts_too(base_of: Make) -> None:
    lora = Lora(r=4, target_modules=["up_proj"])
    model = loading.add_lora(loading.load_base(base_of("deepseek_v3"), CPU, "float32"), lora, 0)
    layers = {key.partition(".lora_")[0] for key, weight in model.named_parameters() if weight.requires_grad}
    assert {layer.partition("layers.")[2] for layer in layers} == {"0.mlp.up_proj", "1.mlp.shared_experts.up_proj"}
    assert model.config.model_type == "deepseek_v3"


def test_the_engine_serves_several_adapters_of_a_mixture(
    base_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of("deepseek_v3")
    one, two = adapter(base, tmp_path / "one", 1), adapter(base, tmp_path / "two", 2)
    engine = LoadedBase(base, max_adapters=2, max_bytes=1 << 30)
    untouched = engine.forward(TOKENS, DynamicCache())
    for folder in (one, two):
        engine.load([files(folder)])
        alone = logits(loading.load_adapter(loading.load_base(base, CPU, "float32"), folder))
        torch.testing.assert_close(engine.forward(TOKENS, DynamicCache(), [(folder.name,)]), alone)
        assert not torch.allclose(alone, untouched)
    assert torch.equal(engine.forward(TOKENS, DynamicCache()), untouched)


def files(folder: Path) -> AdapterFiles:
    """An adapter as the engine takes it."""
    from finetune.inference.adapters import CONFIG, _lora
    from finetune.inference.request import AdapterSource

    source = AdapterSource(id=folder.name, uri=f"{folder.as_uri()}/", manifest_uri=f"{folder.as_uri()}/manifest.json")
    return AdapterFiles(folder.name, folder, None, _lora(source, folder / CONFIG), 1)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3", "qwen3_moe"])
def test_peft_alone_reads_the_adapter_as_the_manifest_says(name: str, base_of: Make, tmp_path: Path) -> None:
    base = base_of(name)
    folder = adapter(base, tmp_path / "adapter")
    ours = logits(loading.load_adapter(loading.load_base(base, CPU, "float32"), folder))
    model = loading.load_base(base, CPU, "float32")
    if name.startswith("deepseek"):
        model.config.model_type = targets.AS_NAMED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        plain = PeftModel.from_pretrained(model, str(folder)).eval()
    torch.testing.assert_close(logits(plain), ours)
