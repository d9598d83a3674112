"""The model card: README.md of a product's folder, as the Hugging Face hub reads it, made of the manifest. No torch.

The front matter is YAML by https://huggingface.co/docs/hub/model-cards; values are written as JSON, which YAML contains.
No address of a dataset and no path stands in it: a card is made to be passed on.
"""

from __future__ import annotations

import json
import re
from typing import Any

from finetune.model.product import public_name
from finetune.steps import Base, Manifest, Resolved, Result, Source

LOAD_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter = "adapter"  # this folder
base = AutoModelForCausalLM.from_pretrained({base}{revision})
model = PeftModel.from_pretrained(base, adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)
"""
LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "model"  # this folder
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
COMMIT = re.compile(r"[0-9a-f]{40}")


def card(manifest: Manifest, *, whole: bool = False, lora: dict[str, Any] | None = None) -> str:
    """The text of README.md.

    Args:
        manifest: Of the result; its files need not be listed yet.
        whole: It is a model of its own, no adapter.
        lora: The adapter's shape where it is at hand; else what was asked for, which is not that of an adapter gone on from.
    """
    front = "\n".join(
        f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front_matter(manifest, whole).items()
    )
    sections = [
        f"---\n{front}\n---\n",
        f"# {_title(manifest, whole)}\n",
        _table(("", ""), _facts(manifest, lora)),
        "## Data\n",
        _table(("", ""), _data(manifest)),
        "## Metrics\n",
        _metrics(manifest),
        "## Use\n",
        f"```python\n{_load(manifest.base, whole)}```\n",
        "The manifest beside this folder names the dataset's files, the configuration and the sha256 of every file.\n",
    ]
    return "\n".join(sections)


def before_upload(base: Base, resolved: Resolved, result: Result, lora: dict[str, Any] | None) -> str:
    """The card of a training's product before anything of it is on S3: the same for the same weights.

    Args:
        base, resolved, result: What was trained; the seconds it took are left out.
        lora: The adapter's shape; None for a model of its own.
    """
    timeless = result.model_copy(update={"seconds": 0.0, "cpu_seconds": 0.0, "gpu_seconds": 0.0})
    manifest = Manifest(
        job="", suffix=None, created_at=0, base=base, dataset=Source(files=[]), config={}, resolved=resolved,
        result=timeless, evaluation=None, code_version="", image=None, files=[],
    )  # fmt: skip
    return card(manifest, whole=lora is None, lora=lora)


def front_matter(manifest: Manifest, whole: bool = False) -> dict[str, Any]:
    """What the hub reads: base model and relation, library, task, tags, and the metrics on the held-out rows."""
    technique = manifest.resolved.technique
    base = public_name(manifest.base)
    found: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "finetune" if whole else "adapter",
        "library_name": "transformers" if whole else "peft",
        "pipeline_tag": "text-generation",
        "tags": [technique, "llamaflow", f"base_model:{'finetune' if whole else 'adapter'}:{base}"],
    }
    metrics = [
        {"type": kind, "name": name, "value": value}
        for kind, name, value, _ in _measured(manifest)
        if value is not None
    ]
    if metrics:
        dataset = {"name": "held-out rows", "type": "private"}
        task = {"type": "text-generation", "name": "Text Generation"}
        result = {"task": task, "dataset": dataset, "metrics": metrics}
        found["model-index"] = [{"name": _title(manifest, whole), "results": [result]}]
    return found


def _title(manifest: Manifest, whole: bool) -> str:
    kind = "model" if whole else f"{'QLoRA' if manifest.resolved.technique == 'qlora' else 'LoRA'} adapter"
    return f"{manifest.suffix}: {kind}" if manifest.suffix else kind[0].upper() + kind[1:]


def _facts(manifest: Manifest, lora: dict[str, Any] | None) -> list[tuple[str, str]]:
    resolved, result = manifest.resolved, manifest.result
    if lora is None:
        lora = {} if result.parent else manifest.config.get("lora") or {}
    shape = f"rank {lora.get('r')}, alpha {lora.get('alpha'):g}, dropout {lora.get('dropout', 0):g}" if lora else ""
    kinds = [name for name, key in (("rank-stabilised", "use_rslora"), ("DoRA", "use_dora")) if lora.get(key)]
    rate = f"{resolved.learning_rate:g}, {resolved.lr_scheduler}, warm-up {resolved.warmup_ratio:g}"
    return [
        ("Base", f"`{public_name(manifest.base)}`, {manifest.base.parameters / 1e6:,.1f} million parameters"),
        ("Base revision", f"`{manifest.base.revision}`"),
        ("Goes on from", f"`{result.parent.id}`" if result.parent else ""),
        ("Technique", resolved.technique + (f", DPO with beta {resolved.beta:g}" if resolved.beta else "")),
        ("LoRA", ", ".join([shape, *kinds]) if shape and resolved.technique != "full" else ""),
        ("Not adapted", result.left_out or ""),
        ("Steps", f"{result.steps:,} of {resolved.batch_size * resolved.gradient_accumulation_steps} examples"),
        ("Epochs", str(resolved.n_epochs)),
        ("Trained tokens", f"{result.trained_tokens:,}"),
        ("Learning rate", rate),
        ("Longest example", f"{resolved.max_length:,} tokens at most"),
        ("Precision", result.precision),
        ("Time", _time(result) if result.seconds else ""),
        ("Versions", ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))),
        ("Made by", f"LlamaFlow {manifest.code_version}" if manifest.code_version else ""),
    ]


def _time(result: Result) -> str:
    return f"{result.seconds:,.0f} s; {result.cpu_seconds:,.0f} CPU s, {result.gpu_seconds:,.0f} GPU s"


def _data(manifest: Manifest) -> list[tuple[str, str]]:
    resolved, found = manifest.resolved, manifest.statistics or {}
    train = found.get("train") or {}
    row = train.get("tokens_a_row") or {}
    masked = train.get("share_masked")
    return [
        (
            "Preference pairs" if resolved.method == "dpo" else "Examples",
            f"{resolved.n_examples:,}, and {resolved.n_validation:,} held out for validation",
        ),
        ("Tokens of an epoch", f"{resolved.tokens:,}, {resolved.trained_tokens:,} of them trained"),
        ("Share not trained", f"{masked:.1%}" if isinstance(masked, float) else ""),
        ("Tokens an example", f"median {row['median']:g}, 95 % below {row['p95']:g}" if row else ""),
        ("Longest", f"{resolved.longest:,} tokens"),
        ("Repeated examples", f"{found['duplicates']:,}" if found.get("duplicates") else ""),
        ("Held-out examples also in training", f"{found['leaked']:,}" if found.get("leaked") else ""),
        ("Left out or cut for length", f"{resolved.dropped:,} and {resolved.truncated:,}" if _cut(manifest) else ""),
        ("sha256 of tokens and masks", f"`{resolved.data_sha256}`"),
    ]


def _cut(manifest: Manifest) -> bool:
    return bool(manifest.resolved.dropped or manifest.resolved.truncated)


def _measured(manifest: Manifest) -> list[tuple[str, str, float | None, float | None]]:
    """The hub's name of a metric, ours, its value, and the base's on the same rows."""
    found, result = manifest.evaluation, manifest.result
    if found is None or not found.rows:
        return [
            ("loss", "validation loss", result.valid_loss, None),
            ("accuracy", "validation token accuracy", result.valid_mean_token_accuracy, None),
        ]
    return [
        ("loss", "loss", found.loss, found.base_loss),
        ("accuracy", "token accuracy", found.token_accuracy, found.base_token_accuracy),
        ("exact_match", "exact match", found.exact_match, None),
        ("contains", "contains", found.contains, None),
        *((f"rewards_{name}", f"rewards, {name}", value, None) for name, value in (found.rewards or {}).items()),
    ]


def _metrics(manifest: Manifest) -> str:
    rows = [
        (name, f"{value:.4f} | {'' if base is None else format(base, '.4f')}")
        for _, name, value, base in _measured(manifest)
        if value is not None
    ]
    loss = manifest.result.train_loss
    first = [] if loss is None else [("training loss, last step", f"{loss:.4f} |")]
    return _table(("", "this | base"), first + rows) if rows or first else "Nothing was held out.\n"


def _load(base: Base, whole: bool) -> str:
    if whole:
        return LOAD_MODEL
    revision = (
        f", revision={json.dumps(base.revision)}" if base.kind == "hub" and COMMIT.fullmatch(base.revision) else ""
    )
    return LOAD_ADAPTER.format(base=json.dumps(public_name(base)), revision=revision)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    columns = 1 + head[1].count("|") + 1
    lines = [f"| {head[0]} | {head[1]} |", "|" + "---|" * columns]
    lines += [f"| {name} | {value} |" for name, value in rows if value]
    return "\n".join(lines) + "\n"
