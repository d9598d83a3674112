"""Examples packed into lines are computed as each is alone, in every family; bases of which this is not true are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune.config import Lora
from finetune.data.encode import Example
from finetune.exit_codes import StepError
from finetune.model import loading, packs
from finetune.train import packing
from finetune.train.batches import packed
from finetune.train.logits import hidden_at
from finetune.train.loss import lay, score
from tests.finetune.matrix.shapes import SHAPE, SHAPES, WINDOW, Make

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
LENGTHS = (5, 2 * WINDOW, 7, 3 * WINDOW, 1 + WINDOW, 9)
"""Some beyond every sliding window; several fit into a line of the longest."""


def rows() -> list[Example]:
    """Random examples; a third of their tokens are trained, the first of one only by mistake."""
    drawn = np.random.default_rng(1)
    made = []
    for line, length in enumerate(LENGTHS, start=1):
        mask = drawn.random(length) < 1 / 3
        mask[[0, -1]] = line == 2, True
        made.append(Example(line, drawn.integers(3, 1000, length).astype(np.int32), mask))
    return made


def laid(examples: list[Example], budget: int = 1000) -> list[list[list[Example]]]:
    """The examples as training packs them."""
    cut = packed(range(len(examples)), np.array([len(example.tokens) for example in examples]), budget)
    return [[[examples[row] for row in line] for line in lines] for lines in cut]


def adapted(base: Path) -> Any:
    """A base with an adapter that is not nothing."""
    model = loading.add_lora(loading.load_base(base, CPU, "float32"), Lora(r=4), 0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.02)
    return model


def logits_of(model: Any, lines: list[list[Example]]) -> torch.Tensor:
    """Logits at all positions, shape (lines, n, vocabulary)."""
    tokens, _, positions = lay(lines, 0)
    hidden, tail = hidden_at(model, tokens, torch.ones_like(tokens, dtype=torch.bool), position_ids=positions)
    return tail(hidden).reshape(*tokens.shape, -1)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_examples_have_the_logits_the_loss_and_the_gradients_they_have_alone(name: str, base_of: Make) -> None:
    model = adapted(base_of(name))
    examples = rows()
    (lines,) = laid(examples)
    assert len(lines) < len(examples)
    together = logits_of(model, lines)
    for number, line in enumerate(lines):
        begin = 0
        for example in line:
            end = begin + len(example.tokens)
            tokens = torch.tensor(example.tokens.astype(np.int64))[None]
            alone = model(input_ids=tokens, use_cache=False).logits[0]
            torch.testing.assert_close(together[number, begin:end], alone, rtol=1e-4, atol=1e-5)
            begin = end

    model.zero_grad()
    found = score(model, *lay(lines, 0))
    found.loss.backward()
    gradients = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    apart = [score(model, *lay([[example]], 0)[:2]) for example in examples]
    torch.stack([one.loss for one in apart]).sum().backward()
    assert found.loss.item() == pytest.approx(sum(one.loss.item() for one in apart), rel=1e-5)
    assert found.tokens == sum(one.tokens for one in apart) == sum(int(example.mask[1:].sum()) for example in examples)
    assert int(found.correct) == sum(int(one.correct) for one in apart)
    for key, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(gradients[key], weight.grad, rtol=1e-3, atol=1e-5)
    packing.require(model)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_nothing_of_an_example_is_seen_by_another_of_its_line(name: str, base_of: Make) -> None:
    model = loading.load_base(base_of(name), CPU, "float32")
    first, second, other = rows()[1], rows()[3], rows()[1]
    changed = Example(9, (other.tokens + 1).astype(np.int32), other.mask)
    with torch.no_grad():
        before, after = (logits_of(model, [[one, second]])[0, len(one.tokens) :] for one in (first, changed))
    assert torch.equal(before, after)


def test_without_positions_of_its_own_an_example_would_see_the_one_before_it(base_of: Make) -> None:
    model = loading.load_base(base_of("llama"), CPU, "float32")
    (lines,) = laid(rows())
    tokens, mask, positions = lay(lines, 0)
    with torch.no_grad():
        leaking, kept = score(model, tokens, mask).loss.item(), score(model, tokens, mask, positions).loss.item()
    assert abs(leaking - kept) > 0.01 * kept


STATEFUL: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 1024}),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 1024}),
    "lfm2": ("Lfm2Config", SHAPE | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_bases_that_mix_examples_are_refused_by_name_and_by_measure(name: str, tmp_path: Path) -> None:
    config, values = STATEFUL[name]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**values))
    model.config.save_pretrained(tmp_path)
    with pytest.raises(StepError, match=r"hyperparameters.packing: examples cannot be packed") as known:
        packs.require(tmp_path)
    with pytest.raises(StepError, match=r"hyperparameters.packing: examples cannot be packed") as measured:
        packing.require(model)
    for refusal in (known.value, measured.value):
        assert (refusal.code.name, refusal.param) == ("unsupported_operation", "hyperparameters.packing")
        assert "Leave packing out" in refusal.message


def test_what_is_measured_draws_no_random_number_and_leaves_the_mode(base_of: Make) -> None:
    model = loading.load_base(base_of("llama"), CPU, "float32").train()
    before = torch.get_rng_state()
    assert packing.distance(model) < 1e-4
    packing.require(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("config", "longest", "refused"),
    [
        ({"model_type": "llama"}, 9000, False),
        ({"model_type": "phi3", "rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 4096}, 4096, False),
        ({"model_type": "phi3", "rope_parameters": {"rope_type": "longrope"}, "original_max_position_embeddings": 4096}, 4097, True),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic"}, "max_position_embeddings": 64}, 65, True),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "linear"}}}, 9000, False),
        ({"model_type": "gemma3", "text_config": {"layer_types": ["sliding_attention", "full_attention"]}}, 0, False),
        ({"model_type": "new", "text_config": {"layer_types": ["linear_attention", "full_attention"]}}, 0, True),
        ({"model_type": "falcon", "alibi": True}, 0, True),
        ({"model_type": "falcon", "alibi": False}, 0, False),
    ],
)  # fmt: skip
def test_a_configuration_tells_what_cannot_be_packed(
    config: dict[str, Any], longest: int, refused: bool, tmp_path: Path
) -> None:
    assert (packs.reason(config, longest) is not None) == refused
    (tmp_path / "config.json").write_text(json.dumps(config))
    if refused:
        with pytest.raises(StepError, match="Leave packing out"):
            packs.require(tmp_path, longest)
    else:
        packs.require(tmp_path, longest)
