"""Which bases can become a GGUF file: Llama-shaped ones, with a tokenizer whose splitting of text GGUF has a name for.

Reads config.json and tokenizer.json alone, so that FETCH_MODEL and the estimate can refuse the others before anything is
trained. No torch. Authority for names: the `gguf` package and llama.cpp's converter.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.exit_codes import StepError

MODEL_TYPES = ("llama", "mistral")
ROPE_TYPES = ("default", "linear", "llama3")

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITTINGS: dict[tuple[str, ...], str] = {
    ("ByteLevel+",): "gpt-2",
    ("Digits", "ByteLevel+"): "smollm",
    (f"Split {_WORDS}" + r"\p{N}{1,3}" + _REST, "ByteLevel"): "llama-bpe",
    (f"Split {_WORDS}" + r"\p{N}" + _REST, "ByteLevel"): "qwen2",
    (f"Split {_CASED}", "ByteLevel"): "tekken",
}
"""How tokenizer.json splits text before it looks for merges, and GGUF's name for that. `+`: by GPT-2's own pattern too."""


@dataclass(frozen=True)
class Llama:
    """The shape of a Llama-like base.

    Attributes:
        layers, hidden, intermediate, heads, kv_heads, head_size, vocabulary: Counts.
        context: Tokens that full attention is right for: no more than a sliding window has.
        rms_epsilon: Of the norms.
        rope: The rotary embedding's parameters: rope_type, rope_theta, and the scaling's own.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    rms_epsilon: float
    rope: dict[str, Any]


@dataclass(frozen=True)
class Splitting:
    """How the tokenizer works in GGUF's words: `gpt2` (bytes) or `llama` (pieces), and the splitting's name."""

    model: Literal["gpt2", "llama"]
    pre: str


def require(base: Path) -> tuple[Llama, Splitting]:
    """The shape and the tokenizer of a base that can become a GGUF file.

    Args:
        base: Its folder.
    Raises:
        StepError: `unsupported_operation`: it cannot; says why.
    """
    return shape(_object(base / "config.json")), splitting(_object(base / "tokenizer.json"))


def shape(config: dict[str, Any]) -> Llama:
    """The shape that a config.json tells.

    Raises:
        StepError: `unsupported_operation`: it is not Llama's.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise _refused(f"its model type is {kind!r}, and only {' and '.join(MODEL_TYPES)} are written")
    for name in ("attention_bias", "mlp_bias", "quantization_config"):
        if config.get(name):
            raise _refused(f"it has {name}")
    if config.get("hidden_act", "silu") != "silu":
        raise _refused(f"its activation is {config['hidden_act']!r}, not 'silu'")
    rope = _rope(config)
    if rope["rope_type"] not in ROPE_TYPES or float(rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _refused(f"its rotary embedding is of the type {rope['rope_type']!r}")
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        context = int(config["max_position_embeddings"])
        return Llama(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            context=min(context, int(config.get("sliding_window") or context)),
            rms_epsilon=float(config["rms_norm_eps"]),
            rope=rope,
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise _refused(f"its config.json lacks what a Llama has ({problem})") from None


def splitting(tokenizer: dict[str, Any]) -> Splitting:
    """What kind of tokenizer a tokenizer.json holds.

    Raises:
        StepError: `unsupported_operation`: GGUF has no name for it.
    """
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise _refused(f"its tokenizer is of the type {model.get('type')!r}, not BPE")
    if model.get("byte_fallback"):
        return Splitting("llama", "default")
    parts = tuple(_part(entry) for entry in _flat(tokenizer.get("pre_tokenizer")))
    if parts not in SPLITTINGS:
        raise _refused("its tokenizer splits text in a way that GGUF has no name for")
    return Splitting("gpt2", SPLITTINGS[parts])


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters`, or what older files say in `rope_theta` and `rope_scaling`."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    found.setdefault("rope_type", found.get("type", "default"))
    found.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    return found


def _flat(entry: Any) -> list[dict[str, Any]]:
    if not isinstance(entry, dict):
        return []
    if entry.get("type") == "Sequence":
        return [part for child in entry.get("pretokenizers", []) for part in _flat(child)]
    return [entry]


def _part(entry: dict[str, Any]) -> str:
    kind = str(entry.get("type"))
    if kind == "ByteLevel":
        plain = not entry.get("add_prefix_space")
        return f"{kind}{'+' if entry.get('use_regex', True) else ''}" if plain else "ByteLevel with a space"
    if kind == "Digits":
        return kind if entry.get("individual_digits") else "Digits together"
    if kind == "Split":
        pattern = entry.get("pattern") or {}
        usual = entry.get("behavior") == "Isolated" and not entry.get("invert")
        return f"Split {pattern.get('Regex')}" if usual else "Split otherwise"
    return kind


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise _refused(f"its {path.name} cannot be read") from None
    return value if isinstance(value, dict) else {}


def _refused(why: str) -> StepError:
    told = f"The base cannot become a GGUF file: {why}. Leave output.gguf out, or choose a Llama-shaped base."
    return StepError("unsupported_operation", told, param="output.gguf")
