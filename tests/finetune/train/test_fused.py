"""A linear layer with its adapter in one operation: the numbers are peft's, and so is whatever it does not take over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import Linear

from finetune.config import Lora
from finetune.model import loading
from finetune.train.fused import fuse

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


def adapted(base: Any, kind: loading.Precision = "float32", **lora: Any) -> Any:
    """A base with an adapter that is not nothing."""
    model = loading.add_lora(loading.load_base(base, CPU, kind), Lora(r=4, **lora), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1, generator=generator)
    return model.train()


def outcome(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and gradients for some tokens."""
    model.zero_grad()
    tokens = torch.arange(60).reshape(3, 20)
    logits = model(input_ids=tokens, use_cache=False).logits.float()
    logits.square().mean().backward()
    found = [weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]
    return logits.detach(), torch.cat(found)


def test_logits_and_gradients_are_those_of_peft(base: Any) -> None:
    model = adapted(base, use_rslora=True)
    logits, gradients = outcome(model)
    assert fuse(model) == 2 * 7
    fused_logits, fused_gradients = outcome(model)
    torch.testing.assert_close(fused_logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused_gradients, gradients, rtol=1e-4, atol=1e-6)


def test_a_bfloat16_base_keeps_its_float32_adapter(base: Any) -> None:
    model = adapted(base, "bfloat16")
    fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, gradients = outcome(model)
    exact = adapted(base)
    expected_logits, expected = outcome(exact)
    assert torch.nn.functional.cosine_similarity(gradients, expected, dim=0) > 0.99
    assert (logits - expected_logits).abs().max() < 0.1 * expected_logits.abs().max()
    assert {weight.grad.dtype for weight in model.parameters() if weight.grad is not None} == {torch.float32}


@pytest.mark.parametrize("lora", [{"dropout": 0.5}, {"use_dora": True}])
def test_what_is_not_plain_stays_with_peft(base: Any, lora: dict[str, Any]) -> None:
    model = adapted(base, **lora)
    torch.manual_seed(3)
    logits, gradients = outcome(model)
    fuse(model)
    torch.manual_seed(3)
    assert all(map(torch.equal, outcome(model), (logits, gradients)))


def test_without_its_adapter_the_base_answers_to_the_bit(base: Any) -> None:
    plain = loading.load_base(base, CPU, "float32")
    model = adapted(base)
    fuse(model)
    tokens = torch.arange(20)[None]
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=tokens).logits, plain(input_ids=tokens).logits)


def test_a_merged_layer_does_not_add_its_adapter_again(base: Any) -> None:
    model = adapted(base)
    layer = next(module for module in model.modules() if type(module) is Linear)
    x = torch.randn(5, layer.in_features)
    fuse(model)
    before = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
