"""Tiny random models of every family, each with the chat template and the kind of tokenizer its family has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.finetune.golden.families import FAMILIES, build

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
WINDOW = 16
"""Tokens that layers with a sliding window look back: less than an example has."""
GEMMA: dict[str, Any] = SHAPE | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
LATENT: dict[str, Any] = SHAPE | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}


@dataclass(frozen=True)
class Shape:
    """A family's architecture.

    Attributes:
        config: Name of its configuration class in transformers.
        values: Of that configuration.
        family: Whose template and tokenizer it has.
        template: Whether its files have a chat template.
    """

    config: str
    values: dict[str, Any]
    family: str
    template: bool = True


SHAPES: dict[str, Shape] = {
    "llama": Shape("LlamaConfig", SHAPE, "llama31"),
    "mistral": Shape("MistralConfig", SHAPE | {"sliding_window": WINDOW}, "mistral_v3"),
    "qwen2": Shape("Qwen2Config", SHAPE | {"tie_word_embeddings": True}, "qwen25"),
    "qwen3": Shape("Qwen3Config", SHAPE | {"head_dim": 8, "tie_word_embeddings": True}, "qwen3"),
    "gemma2": Shape("Gemma2Config", GEMMA | {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}, "gemma2"),
    "gemma3": Shape("Gemma3TextConfig", GEMMA, "gemma3"),
    "phi3": Shape("Phi3Config", SHAPE, "phi3"),
    "deepseek_dense": Shape("LlamaConfig", SHAPE, "deepseek_r1"),
    "deepseek_v2": Shape(
        "DeepseekV2Config", LATENT | {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1}, "deepseek_v2"
    ),
    "deepseek_v3": Shape("DeepseekV3Config", LATENT | {"q_lora_rank": 8, "n_group": 2}, "deepseek_v3"),
    "gpt_neox": Shape(
        "GPTNeoXConfig", {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}, "plain", False
    ),
    "qwen3_moe": Shape(
        "Qwen3MoeConfig",
        SHAPE | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        "qwen3",
    ),
}
MIXTURES = {"deepseek_v2", "deepseek_v3", "qwen3_moe"}


def make(name: str, folder: Path) -> Path:
    """The folder of a base: tokenizer, template and random weights."""
    import torch
    import transformers

    shape = SHAPES[name]
    build(FAMILIES[shape.family], folder)
    if not shape.template:
        (folder / "chat_template.jinja").unlink()
    torch.manual_seed(0)
    config = getattr(transformers, shape.config)(**shape.values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


Make = Callable[[str], Path]
