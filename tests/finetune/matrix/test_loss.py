"""The trainer's loss is the model's own, whatever the architecture does with attention and logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.config import Lora
from finetune.data.encode import Example
from finetune.model import loading, targets
from finetune.train.loss import pad, score
from tests.finetune.matrix.shapes import MIXTURES, SHAPES, WINDOW, Make

pytestmark = pytest.mark.train

CPU = torch.device("cpu")


def examples() -> list[Example]:
    """Of different lengths, the longest beyond every sliding window; a third of the tokens are trained."""
    drawn = np.random.default_rng(1)
    made = []
    for line, length in enumerate((5, WINDOW, 3 * WINDOW), start=1):
        mask = drawn.random(length) < 1 / 3
        mask[[0, -1]] = False, True
        made.append(Example(line, drawn.integers(3, 1000, length).astype(np.int32), mask))
    return made


@pytest.mark.parametrize("name", SHAPES)
def test_a_padded_batch_has_the_loss_and_the_gradients_the_model_gives_each_example_alone(
    name: str, base_of: Make
) -> None:
    model = loading.add_lora(loading.load_base(base_of(name), CPU, "float32"), Lora(r=4), 0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.02)  # else half of an adapter has no gradient
    rows = examples()
    ours = score(model, *pad(rows, 0))
    ours.loss.backward()
    gradients = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    total = 0.0
    for row in rows:
        tokens, mask = (torch.tensor(part)[None] for part in (row.tokens.astype(np.int64), row.mask))
        loss = model(input_ids=tokens, labels=tokens.masked_fill(~mask, -100)).loss * int(mask.sum())
        loss.backward()
        total += loss.item()
    assert ours.tokens == sum(int(row.mask.sum()) for row in rows)
    assert ours.loss.item() == pytest.approx(total, rel=1e-5)
    assert gradients
    for key, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[key], weight.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_every_layer_is_adapted_but_the_output_and_experts_and_their_routers(name: str, base_of: Make) -> None:
    model = loading.add_lora(loading.load_base(base_of(name), CPU, "float32"), Lora(r=4), 0)
    layers = {key.partition(".lora_")[0] for key, weight in model.named_parameters() if weight.requires_grad}
    linear = {
        key.removesuffix(".base_layer") for key, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)
    }
    linear = {key for key in linear if ".lora_" not in key}
    assert layers == {key for key in linear if not key.endswith(("lm_head", "embed_out", ".gate"))}
    assert not any(".experts" in key or key.endswith(".gate") for key in layers)
    assert any("shared_experts" in key for key in layers) == name.startswith("deepseek_v")
    assert (targets.left_out(model) is not None) == (name in MIXTURES)
