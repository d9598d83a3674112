"""Several adapters made one, once and for all: peft's weighted merges (`cat`, `ties`), without their base being loaded.

What comes out is an ordinary LoRA. It forgets some of what its members know (docs/serving.md); routing does not. Ties:
Yadav et al. 2023, arXiv:2306.01708. Reads checked folders, writes one; the S3 door is finetune.s3.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from finetune import s3
from finetune.exit_codes import StepError
from finetune.inference import routing
from finetune.inference.adapters import AdapterFiles
from finetune.inference.finding import Finder
from finetune.inference.request import Member
from finetune.model.cache import file_sha256
from finetune.model.peft_folder import CONFIG, TEMPLATE, TENSOR, VECTORS, WEIGHTS, lora_fields
from finetune.steps import S3, Manifest, ModelSource

MERGED = "merged"


class Merge(BaseModel):
    """What is to be merged, and where it goes.

    Attributes:
        base: Of all members.
        members: The adapters.
        weights: One each.
        method: `cat` keeps every rank; `ties` settles signs and needs equal ranks.
        density: Of ties: the share of each adapter's weights that is kept.
        target: `s3://…/`, where the files are put.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: ModelSource
    members: list[Member] = Field(min_length=2, max_length=8)
    weights: list[float] = Field(min_length=2, max_length=8)
    method: Literal["cat", "ties"]
    density: float = Field(0.5, gt=0, le=1)
    target: str = Field(pattern=r"^s3://[^\x00-\x1f\x7f]+/$", max_length=1200)


def merge_to_s3(asked: Merge, finder: Finder) -> dict[str, Any]:
    """Merge adapters and put the outcome on S3. Blocking.

    Returns:
        `files`: path, sha256 and size of each below the target; `lora`: what makes the adapter.
    Raises:
        StepError: A member cannot be had, or not be merged.
    """
    access = S3()
    base = finder.base(asked.base, access)[1]
    found = [finder.adapter(member.adapter, base, access) for member in asked.members]
    with tempfile.TemporaryDirectory(prefix="llamaflow-merge-") as scratch:
        folder = Path(scratch)
        merge(found, asked.weights, asked.method, asked.density, folder)
        files = sorted(folder.iterdir())
        with s3.opened(access) as client:
            for path in files:
                s3.put(client, path, asked.target + path.name)
        told = [Manifest.File(path=path.name, sha256=file_sha256(path), size=path.stat().st_size) for path in files]
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {"files": [file.model_dump() for file in told], "lora": lora_fields(config)}


def merge(
    adapters: Sequence[AdapterFiles],
    weights: Sequence[float],
    method: Literal["cat", "ties"],
    density: float,
    folder: Path,
) -> None:
    """Write a PEFT folder that is the weighted merge of adapters.

    Args:
        adapters: Of one base.
        weights: One each.
        method: As `Merge` has it.
        density: As `Merge` has it.
        folder: Gets adapter_config.json, adapter_model.safetensors and what the members have of template and vectors.
    Raises:
        StepError: `unsupported_operation`: DoRA, other templates, or with ties other ranks.
    """
    if any(files.lora.get("use_dora") for files in adapters):
        raise _refused("a DoRA adapter cannot be merged with others")
    if len({files.template for files in adapters}) > 1:
        raise _refused("they were trained with different chat templates")
    names = [f"member{number}" for number in range(len(adapters))]
    model = _skeleton(adapters)
    for name, files in zip(names, adapters, strict=True):
        config = LoraConfig(**files.lora, lora_dropout=0.0, inference_mode=True)
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = PeftModel(model, config, name)
        model.load_adapter(str(files.folder), name)
    more = {"density": density} if method == "ties" else {}
    try:
        model.base_model.add_weighted_adapter(names, list(weights), MERGED, combination_type=method, **more)
    except ValueError as problem:
        raise _refused(str(problem).splitlines()[0].rstrip(".")) from None
    state = get_peft_model_state_dict(model, adapter_name=MERGED, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(_config(model.peft_config[MERGED]), encoding="utf-8")
    if adapters[0].template is not None:
        (folder / TEMPLATE).write_text(adapters[0].template, encoding="utf-8")
    if all(files.questions is not None for files in adapters):
        vectors = [routing.read(files.questions) for files in adapters if files.questions is not None]
        routing.write(folder / VECTORS, torch.cat(vectors)[: routing.MAX_QUESTIONS])


def _skeleton(adapters: Sequence[AdapterFiles]) -> Any:
    """A model with the layers that adapters stand beside, by name and shape; its weights take no memory."""
    root = nn.Module()
    for files in adapters:
        with safe_open(files.folder / WEIGHTS, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  it is no mapping
        for key, shape in shapes.items():
            match = TENSOR.fullmatch(key)
            if match is not None and match["part"] == "lora_A":
                wide = shapes[key.replace(".lora_A.", ".lora_B.")][0]
                _place(root, match["module"].split("."), _hollow(shape[1], wide))
    return root


def _place(root: nn.Module, path: list[str], leaf: nn.Module) -> None:
    for part in path[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(path[-1], leaf)


def _hollow(narrow: int, wide: int) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.in_features, layer.out_features = narrow, wide
    layer.weight = nn.Parameter(torch.zeros(1).expand(wide, narrow), requires_grad=False)
    return layer


def _config(config: LoraConfig) -> str:
    told = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
        if value is not None
    }
    told |= {"task_type": "CAUSAL_LM", "inference_mode": True}
    return json.dumps(told, indent=2, sort_keys=True, default=str) + "\n"


def _refused(why: str) -> StepError:
    return StepError(
        "unsupported_operation", f"The adapters cannot be merged: {why}. Use the method route.", param="method"
    )
