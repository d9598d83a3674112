"""What a training left: an adapter, or a model that is a base of its own; where it lies, and what its base is called. No torch."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from finetune.config import Product
from finetune.exit_codes import StepError
from finetune.model.peft_folder import CONFIG, WEIGHTS
from finetune.steps import Base

ADAPTER_FILES = (CONFIG, WEIGHTS)
ADAPTER, MODEL = "adapter/", "model/"
"""Where each lies below a result's prefix."""


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


def public_name(base: Base) -> str:
    """A base's id as others may read it; of an S3 prefix or a folder of some machine only the last part."""
    is_place = base.kind in ("path", "s3") or base.id.startswith(("/", "s3://", "file:"))
    return PurePosixPath(base.id).name if is_place else base.id
