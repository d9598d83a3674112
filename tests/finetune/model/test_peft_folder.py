"""What peft saves is taken, plain or with DoRA and ranks of its own; a header that lies about its file is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.model.peft_folder import CONFIG, LENGTH_BYTES, WEIGHTS, check_weights, header_length, lora_fields

pytestmark = pytest.mark.train


def save(folder: Path, **fields: Any) -> None:
    """A tiny random adapter, as peft writes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=64
    )  # fmt: skip
    get_peft_model(LlamaForCausalLM(tiny), LoraConfig(**fields)).save_pretrained(folder)


def check(folder: Path) -> int:
    """As an import looks at it; how many weights there are."""
    content = (folder / WEIGHTS).read_bytes()
    length = header_length(content[:LENGTH_BYTES], len(content))
    lora = lora_fields(json.loads((folder / CONFIG).read_text()))
    return check_weights(content[LENGTH_BYTES : LENGTH_BYTES + length], len(content), lora)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({"r": 4, "target_modules": ["q_proj", "v_proj"]}, 4 * (16 + 16) + 4 * (16 + 8)),
        ({"r": 4, "target_modules": ["down_proj"], "use_dora": True}, 4 * (32 + 16) + 16),
        ({"r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}}, 4 * 32 + 2 * 24),
        ({"r": 2, "target_modules": "all-linear"}, None),
    ],
)
def test_what_peft_saves_is_taken(tmp_path: Path, fields: dict[str, Any], weights: int | None) -> None:
    save(tmp_path, **fields)
    assert check(tmp_path) == weights or weights is None


@pytest.mark.parametrize("size", [7, 8, 9])
def test_a_file_too_short_for_a_header_is_none(size: int) -> None:
    with pytest.raises(ValueError, match="no safetensors file"):
        header_length(bytes([200, *bytes(7)])[:size], size)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"x": 1}',
        b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "y": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_lies_is_refused(header: bytes) -> None:
    with pytest.raises(ValueError, match=WEIGHTS):
        check_weights(header, LENGTH_BYTES + len(header) + 4, {"r": 4, "target_modules": ["x"]})
