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
from finetune.model import cache
from finetune.model.peft_folder import CONFIG, TEMPLATE, WEIGHTS
from finetune.progress import write_atomic
from finetune.steps import Base, Resolved, Result

SHARD = "5GB"

USE_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter = …  # this folder
base = AutoModelForCausalLM.from_pretrained(BASE)  # the revision above
model = PeftModel.from_pretrained(base, adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)
"""
USE_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = …  # this folder
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


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


def write_model(model: Any, base: Path, folder: Path) -> None:
    """A whole model in the base's own number format, in shards of safetensors, with the base's own configuration.

    Args:
        model: A transformers model, in float32; it is in the base's format afterwards.
        base: The base's folder.
        folder: Where the files go.
    """
    model.to(stored_dtype(base)).save_pretrained(str(folder), max_shard_size=SHARD)
    for name in ("config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)  # the library writes its own defaults into them
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


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


def public_name(base: Base) -> str:
    """The base's id; for a folder of this machine its last part."""
    return Path(base.id).name if base.kind == "path" or Path(base.id).is_absolute() else base.id


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
    write_atomic(folder / "README.md", card(base, resolved, lora, result))


def card(base: Base, resolved: Resolved, lora: Lora | None, result: Result) -> str:
    """The text of README.md."""
    held = f" ({resolved.n_validation:,} held out for validation)"
    facts = [
        ("Base", f"`{public_name(base)}`"),
        ("Base revision", f"`{base.revision}`"),
        ("Goes on from", f"`{result.parent.id}`" if result.parent else ""),
        ("Preference pairs" if resolved.method == "dpo" else "Examples", f"{resolved.n_examples:,}{held}"),
        ("Trained tokens", f"{result.trained_tokens:,} in {resolved.n_epochs} epochs, {resolved.total_steps:,} steps"),
        ("Examples a step", str(resolved.batch_size * resolved.gradient_accumulation_steps)),
        ("Learning rate", f"{resolved.learning_rate:g}, {resolved.lr_scheduler}, warm-up {resolved.warmup_ratio:g}"),
        ("Technique", resolved.technique + (f", DPO with beta {resolved.beta:g}" if resolved.beta else "")),
        ("LoRA", f"rank {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}{_kind(lora)}" if lora else ""),
        ("Not adapted", result.left_out or ""),
        ("Training loss", _number(result.train_loss)),
        ("Validation loss", _number(result.valid_loss)),
        ("Validation token accuracy", _number(result.valid_mean_token_accuracy)),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts if value)
    front: dict[str, Any] = {
        "base_model": public_name(base),
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-generation",
    }
    front |= {"tags": ["lora"]} if lora else {}
    header = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())
    title, use = ("LoRA adapter", USE_ADAPTER) if lora else ("Fine-tuned model", USE_MODEL)
    return (
        f"---\n{header}\n---\n\n# {title}\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Use\n\n```python\n{use.replace('BASE', json.dumps(public_name(base)))}```\n\n"
        "The manifest beside this folder names the dataset and the sha256 of every file.\n"
    )


def _kind(lora: Lora) -> str:
    kinds = [name for name, used in (("rank-stabilised", lora.use_rslora), ("DoRA", lora.use_dora)) if used]
    return "".join(f", {name}" for name in kinds)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
