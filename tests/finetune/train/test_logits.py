"""Cross-entropy in pieces: the loss, hits and gradients of all logits at once, whatever a model does to its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from finetune.train import logits
from finetune.train.loss import score

pytestmark = pytest.mark.train

VOCABULARY = 97
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
NAMES = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
WIDE = {**SHAPE, **NAMES, "num_key_value_heads": 2}


MODELS: dict[str, Callable[[], Any]] = {
    "plain": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, tie_word_embeddings=False)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, tie_word_embeddings=True)),
    "soft-capped": lambda: Gemma2ForCausalLM(Gemma2Config(**WIDE, head_dim=8, final_logit_softcapping=2.0)),
    "scaled": lambda: CohereForCausalLM(CohereConfig(**WIDE, logit_scale=0.3)),
    "divided": lambda: GraniteForCausalLM(GraniteConfig(**WIDE, logits_scaling=3.0)),
    "named otherwise": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, **NAMES)),
}


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Five rows of tokens, two fifths of which are trained, none at the end."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(3, VOCABULARY, (5, 19), generator=generator)
    mask = torch.rand((5, 19), generator=generator) < 0.4
    mask[:, 0] = False
    mask[:, -2:] = False
    return tokens, mask


@pytest.mark.parametrize("name", MODELS)
def test_in_pieces_it_is_what_all_logits_give(
    name: str, rows: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    model, (tokens, mask) = MODELS[name]().train(), rows
    dense = model(input_ids=tokens, use_cache=False).logits[:, :-1][mask[:, 1:]]
    targets = tokens[:, 1:][mask[:, 1:]]
    functional.cross_entropy(dense, targets, reduction="sum").backward()
    expected = {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    monkeypatch.setitem(logits.LOGITS_BYTES, "cpu", 16 * VOCABULARY * 4)
    assert logits.piece_size(model) == 16 < len(targets)
    found = score(model, tokens, mask)
    (found.loss * 0.5).backward()
    assert found.loss.item() == pytest.approx(
        functional.cross_entropy(dense, targets, reduction="sum").item(), rel=1e-5
    )
    assert int(found.correct) == int((dense.argmax(-1) == targets).sum())
    assert found.tokens == len(targets)
    got = {key: 2 * weight.grad for key, weight in model.named_parameters() if weight.grad is not None}
    assert got.keys() == expected.keys()
    for key in got:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-3, atol=1e-4, msg=key)


def test_no_more_than_a_piece_of_the_logits_is_ever_there(
    rows: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, widths = MODELS["plain"](), list[int]()
    model.lm_head.register_forward_hook(lambda _layer, given, _output: widths.append(given[0].shape[1]))
    monkeypatch.setitem(logits.LOGITS_BYTES, "cpu", 0)
    found = score(model, *rows)
    assert max(widths) == 16
    assert sum(widths) == found.tokens


def test_what_follows_the_last_trained_token_is_not_computed(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, seen = MODELS["plain"](), list[int]()
    model.model.register_forward_hook(
        lambda _body, _args, given, _output: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    tokens, mask = rows
    mask[:, 10:] = False
    mask[2, 9] = True
    whole = score(model, tokens, mask)
    assert seen[0] == 9
    torch.testing.assert_close(score(model, tokens[:, :10], mask[:, :10]).loss, whole.loss)


def test_the_model_is_left_as_it_was(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = MODELS["plain"]().eval()
    before = model(input_ids=rows[0]).logits
    score(model, *rows)
    assert torch.equal(model(input_ids=rows[0]).logits, before)
    assert "forward" not in model.model.__dict__
