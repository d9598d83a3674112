"""The adapter as a folder that anything which reads PEFT can load: safetensors, tokenizer, template, a card.

No path of the machine it was made on stands in any of its files, and equal weights make equal bytes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetune.config import Lora
from finetune.model import cache
from finetune.progress import write_atomic
from finetune.steps import Base, Resolved, Result

CONFIG = "adapter_config.json"
TEMPLATE = "chat_template.jinja"


def write_weights(model: Any, base: Base, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json.

    Args:
        model: A peft model.
        base: Named in the configuration: by its id, and by its commit if the hub knows it.
        folder: Where the files go.
    """
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own card names the folder of the base
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = public_name(base)
    config["revision"] = base.revision if base.kind == "hub" else None
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()
    write_atomic(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)


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


def write_card(folder: Path, base: Base, resolved: Resolved, lora: Lora, result: Result) -> None:
    """README.md: what the adapter is, how it was trained and how it is loaded."""
    write_atomic(folder / "README.md", card(base, resolved, lora, result))


def card(base: Base, resolved: Resolved, lora: Lora, result: Result) -> str:
    """The text of README.md."""
    facts = [
        ("Base", f"`{public_name(base)}`"),
        ("Base revision", f"`{base.revision}`"),
        ("Examples", f"{resolved.n_examples:,} ({resolved.n_validation:,} held out for validation)"),
        ("Trained tokens", f"{result.trained_tokens:,} in {resolved.n_epochs} epochs, {resolved.total_steps:,} steps"),
        ("Examples a step", str(resolved.batch_size * resolved.gradient_accumulation_steps)),
        ("Learning rate", f"{resolved.learning_rate:g}, {resolved.lr_scheduler}, warm-up {resolved.warmup_ratio:g}"),
        ("LoRA", f"rank {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}{_kind(lora)}"),
        ("Training loss", _number(result.train_loss)),
        ("Validation loss", _number(result.valid_loss)),
        ("Validation token accuracy", _number(result.valid_mean_token_accuracy)),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts if value)
    front = {
        "base_model": public_name(base),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora"],
    }
    header = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())
    return (
        f"---\n{header}\n---\n\n# LoRA adapter\n\n| | |\n|---|---|\n{table}\n\n"
        "## Use\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "adapter = …  # this folder\n"
        f"base = AutoModelForCausalLM.from_pretrained({json.dumps(public_name(base))})  # the revision above\n"
        "model = PeftModel.from_pretrained(base, adapter)\ntokenizer = AutoTokenizer.from_pretrained(adapter)\n```\n\n"
        "The manifest beside this folder names the dataset and the sha256 of every file.\n"
    )


def _kind(lora: Lora) -> str:
    kinds = [name for name, used in (("rank-stabilised", lora.use_rslora), ("DoRA", lora.use_dora)) if used]
    return "".join(f", {name}" for name in kinds)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
