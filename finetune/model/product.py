"""What a training left in a folder: an adapter, or a model that is a base of its own. No torch."""

from __future__ import annotations

from pathlib import Path

from finetune.config import Product
from finetune.exit_codes import StepError
from finetune.model.peft_folder import CONFIG, WEIGHTS

ADAPTER_FILES = (CONFIG, WEIGHTS)


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
