"""What a training made, as a folder that anything which reads PEFT or transformers can load: safetensors, tokenizer, card.

No path of the machine it was made on stands in any of its files, and equal weights make equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from finetune.config import Lora
from finetune.export.card import before_upload
from finetune.model import cache
from finetune.model.peft_folder import CONFIG, TEMPLATE, WEIGHTS
from finetune.model.product import public_name
from finetune.progress import write_atomic
from finetune.steps import Base, Resolved, Result

SHARD = "5GB"


def write_weights(model: Any, base: Base, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json.

    Args:
        model: A peft model.
        base: Named in the configuration: by its id, and by its commit if the hub knows it.
        folder: Where the files go.
    """
    model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card names the folder of the base
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = public_name(base)
    config["revision"] = base.revision if base.kind == "hub" else None
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / WEIGHTS).chmod(0o644)


def write_model(model: Any, base: Path, folder: Path) -> str:
    """A whole model in the base's own number format, in shards of safetensors, with the base's own configuration.

    Args:
        model: A transformers model, in float32; it is in the base's format afterwards.
        base: The base's folder.
        folder: Where the files go.
    Returns:
        The number format, such as bfloat16.
    """
    kind = stored_dtype(base)
    model.to(kind).save_pretrained(str(folder), max_shard_size=SHARD)
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)  # the library writes its own defaults into them
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    return str(kind).removeprefix("torch.")


def stored_dtype(base: Path) -> Any:
    """The floating point format that most tensors of a base's files have, as torch names it."""
    counted: Counter[str] = Counter()
    for name in cache.wanted([path.name for path in base.iterdir()]):
        if name.endswith(".safetensors"):
            with safe_open(str(base / name), framework="pt") as file:
                keys = file.keys()
                counted.update(file.get_slice(key).get_dtype() for key in keys)
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    return next((kinds[kind] for kind, _ in counted.most_common() if kind in kinds), torch.float32)


def write_tokenizer(base: Path, template: str, folder: Path) -> None:
    """The base's tokenizer files as they are, and the chat template the adapter was trained with.

    Args:
        base: The base's folder.
        template: Jinja.
        folder: Where the files go.
    """
    for name in cache.wanted([path.name for path in base.iterdir()]):
        weights = name.endswith((".safetensors", ".safetensors.index.json"))
        if not weights and name not in ("config.json", "generation_config.json", TEMPLATE):
            shutil.copyfile(base / name, folder / name)
    write_atomic(folder / TEMPLATE, template)


def write_card(folder: Path, base: Base, resolved: Resolved, lora: Lora | None, result: Result) -> None:
    """README.md: what came out, how it was trained and how it is loaded. lora: None for a whole model."""
    shape = lora.model_dump(mode="json") if lora is not None else None
    write_atomic(folder / "README.md", before_upload(base, resolved, result, shape))
