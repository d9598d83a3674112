"""What a training left in a folder: an adapter, or a model that is a base of its own. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from finetune.config import Product
from finetune.exit_codes import StepError
from finetune.model.cache import wanted

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def kind_of(folder: Path) -> Product:
    """What lies in `folder`.

    Raises:
        StepError: `invalid_step_file`: neither an adapter nor a model.
    """
    names = {path.name for path in folder.iterdir()}
    if set(ADAPTER_FILES) <= names:
        return "adapter"
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "model"
    expected = f"{' and '.join(ADAPTER_FILES)}, or config.json and safetensors, are expected"
    raise StepError("invalid_step_file", f"{folder} holds no adapter and no model: {expected}.")


def revision(files: Mapping[str, str]) -> str:
    """The revision a model's folder has as a base: what `cache.fingerprint` makes of its files, of their sha256 alone.

    Args:
        files: Name → sha256 of every file of the folder.
    """
    lines = [f"{name}\0{files[name]}\n" for name in wanted(list(files))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
