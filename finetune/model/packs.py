"""Bases of which several examples can stand in one line, none seeing another: told by config.json, before a model is loaded.

Attention can be kept inside an example; a state that runs through a line (state-space models, linear attention, short
convolutions) and distances counted over the whole line (ALiBi) cannot. A type not named here is tried before a
training's first step (`finetune.train.packing`). No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.exit_codes import StepError

FIELD = "hyperparameters.packing"
STATEFUL = frozenset({
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe",
    "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next", "recurrent_gemma",
    "rwkv", "xlstm", "zamba", "zamba2",
})  # fmt: skip
"""Types of model that carry a state from token to token."""
COUNTING = frozenset({"bloom", "mpt"})
"""Types of model that count distances over the whole line."""
ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
BY_LENGTH = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that turn otherwise where a line is longer than the base was first trained on."""


def require(base: Path, longest: int = 0) -> None:
    """Refuse a base of which examples in one line would not be computed as they are alone.

    Args:
        base: Its folder.
        longest: Tokens of the longest example; 0 if that is not known yet.
    Raises:
        StepError: `unsupported_operation`, about `hyperparameters.packing`.
    """
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # refused elsewhere
    if isinstance(config, dict) and (why := reason(config, longest)) is not None:
        raise refused(why)


def reason(config: dict[str, Any], longest: int = 0) -> str | None:
    """Why examples cannot stand in one line, as the end of a sentence; None if nothing speaks against it.

    Args:
        config: config.json.
        longest: As in `require`.
    """
    text = config.get("text_config")
    found = text if isinstance(text, dict) else config
    kinds = {str(config.get("model_type")), str(found.get("model_type"))}
    layers = found.get("layer_types")
    other = sorted({str(kind) for kind in layers} - ATTENTION) if isinstance(layers, list) else []
    if stateful := kinds & STATEFUL:
        return f"a base of the type {min(stateful)!r} carries a state from each example into the next"
    if other:
        return f"layers of the kind {other[0]!r} carry a state from each example into the next"
    if (counting := kinds & COUNTING) or found.get("alibi"):
        return f"a base of the type {min(counting or kinds)!r} counts distances over the whole line"
    if by_length := sorted({kind for kind, first in _rotary(found) if kind in BY_LENGTH and longest > first}):
        return f"its rotary embedding ({by_length[0]}) depends on the length of what stands together, and an example has {longest:,} tokens"
    return None


def refused(why: str) -> StepError:
    """The refusal, with the way out."""
    told = f"{FIELD}: examples cannot be packed, because {why}. Leave packing out: the result is the same without it."
    return StepError("unsupported_operation", told, param=FIELD)


def _rotary(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Kinds of rotary embedding, and the length each was first trained on."""
    for name in ("rope_parameters", "rope_scaling"):
        found = config.get(name)
        if not isinstance(found, dict):
            continue
        for part in (found, *(value for value in found.values() if isinstance(value, dict))):
            first = part.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
            first = first or config.get("max_position_embeddings")
            yield str(part.get("rope_type") or part.get("type")), first if isinstance(first, int) else 0
