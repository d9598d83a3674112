"""A base model of one tensor, for tests that need files and no arithmetic."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest


def write_model(folder: Path, *, shape: tuple[int, ...] = (2, 3), template: str | None = None) -> Path:
    """A base of one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 24]}}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    return folder


@pytest.fixture(scope="session")
def model_folder() -> Callable[..., Path]:
    """`model_folder(path, shape=…, template=…)` writes a base and answers its folder."""
    return write_model
