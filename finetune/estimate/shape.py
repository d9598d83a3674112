"""What is known of a base without loading it: its number of weights, its layers and widths. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.exit_codes import StepError
from finetune.model.cache import count_parameters

SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", re.IGNORECASE)
"""The size in a model's name, as in SmolLM2-135M-Instruct or Llama-3.1-8B."""
UNIT = 131_000 / 8e9**0.6
"""Layers times width of Llama-like models grow with the 0.6th power of the weights; 8B models have 32 · 4096."""
VOCABULARY = 128_000


@dataclass(frozen=True)
class Shape:
    """A base.

    Attributes:
        parameters: Weights.
        units: Layers times width: what activations and adapters grow with.
        vocabulary: Rows of the output layer.
        read: Whether these were read from the base's files, not guessed from its size.
    """

    parameters: int
    units: int
    vocabulary: int
    read: bool


def of_folder(folder: Path) -> Shape | None:
    """The shape of a base whose files are here; None if they cannot be read."""
    try:
        return of_config(json.loads((folder / "config.json").read_text(encoding="utf-8")), count_parameters(folder))
    except (OSError, ValueError, StepError):
        return None


def of_config(config: Any, parameters: int) -> Shape:
    """The shape that a config.json tells; what it does not say is guessed from the number of weights."""
    found = config if isinstance(config, dict) else {}
    if isinstance(found.get("text_config"), dict):
        found = found["text_config"]
    layers = _count(found, "num_hidden_layers", "n_layer", "num_layers")
    width = _count(found, "hidden_size", "n_embd", "d_model")
    vocabulary = _count(found, "vocab_size") or VOCABULARY
    guessed = of_parameters(parameters)
    units = layers * width if layers and width else guessed.units
    return Shape(parameters, units, vocabulary, read=bool(layers and width))


def of_parameters(parameters: int) -> Shape:
    """The shape that Llama-like models of this size have."""
    return Shape(parameters, round(UNIT * parameters**0.6), VOCABULARY, read=False)


def of_name(name: str) -> Shape | None:
    """The shape by the size that a model's name tells; None if it tells none."""
    match = SIZE.search(name.rpartition("/")[2])
    if match is None:
        return None
    return of_parameters(round(float(match[1]) * (1e9 if match[2].upper() == "B" else 1e6)))


def _count(config: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), 0)
