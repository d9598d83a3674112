"""The loss of a step: that of the plain library, wherever it is cut, whatever stands in the padding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.config import Lora
from finetune.data.arrays import Examples
from finetune.model import loading
from finetune.train.batches import micro_batches
from finetune.train.loss import pad, score
from tests.finetune.train.conftest import Bench

pytestmark = pytest.mark.train


@pytest.fixture
def examples(bench: Callable[..., Bench]) -> Examples:
    return Examples(bench().inputs["prepared"], "train")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    """Base and an adapter that is not nothing, as after some training."""
    made = loading.add_lora(loading.load_base(base, torch.device("cpu"), "float32"), Lora(r=4), seed=1)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    return made


def gradients(model: Any, examples: Examples, budget: int, pad_id: int = 256) -> tuple[float, torch.Tensor]:
    """Loss and gradients of one step over all examples."""
    model.zero_grad()
    total, loss = int(examples.trained.sum()), 0.0
    for rows in micro_batches(range(len(examples)), examples.lengths, budget):
        found = score(model, *pad([examples[row] for row in rows], pad_id))
        (found.loss / total).backward()
        loss += found.loss.item() / total
    return loss, torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def test_it_equals_the_librarys_loss_on_all_positions(model: Any, examples: Examples) -> None:
    tokens, mask = pad([examples[row] for row in range(len(examples))], 256)
    found = score(model, tokens, mask)
    attention = (torch.arange(tokens.shape[1]) < torch.tensor(examples.lengths.copy())[:, None]).long()
    with torch.no_grad():
        dense = model(input_ids=tokens, attention_mask=attention, labels=tokens.where(mask, -100))
    assert found.tokens == int(mask.sum()) == int(examples.trained.sum())
    assert found.loss.item() / found.tokens == pytest.approx(dense.loss.item(), rel=1e-5)
    hits = (dense.logits[:, :-1].argmax(-1) == tokens[:, 1:])[mask[:, 1:]]
    assert int(found.correct) == int(hits.sum())


@pytest.mark.parametrize("budget", [1, 64, 200])
def test_how_a_step_is_cut_does_not_change_its_gradients(model: Any, examples: Examples, budget: int) -> None:
    whole_loss, whole = gradients(model, examples, budget=100_000)
    loss, cut = gradients(model, examples, budget)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-6)


def test_what_fills_up_shorter_examples_is_never_seen(model: Any, examples: Examples) -> None:
    _, some = gradients(model, examples, budget=100_000, pad_id=256)
    _, other = gradients(model, examples, budget=100_000, pad_id=65)
    assert torch.equal(some, other)


def test_the_model_is_left_as_it_was(model: Any, examples: Examples) -> None:
    tokens, mask = pad([examples[0]], 256)
    score(model, tokens, mask)
    with torch.no_grad():
        assert model(input_ids=tokens).logits.shape[:2] == tokens.shape
