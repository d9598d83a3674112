"""A PEFT folder that was made elsewhere: what of it is taken, how it is checked before its weights are read, what vouches for it.

Only plain LoRA in safetensors is taken; nothing pickled is ever read. The format of the header: the README of the
safetensors library. No torch.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Literal

from pydantic import Field, ValidationError

from finetune.steps import Manifest, ModelSource, StepFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
VECTORS = "question_vectors.safetensors"
"""Beside an adapter: what the base makes of its training questions, by which a combination chooses among adapters."""

LORA_FIELDS = (
    "r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora", "use_dora",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
)  # fmt: skip
"""What is taken over from adapter_config.json."""
DESCRIPTIVE = (
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "init_lora_weights", "lora_dropout", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying",
)  # fmt: skip
"""What does not bear on the answers: nobody here reads it."""

LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header, little-endian."""
HEADER_BYTES = 16 << 20
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.weight)?"
)


class Imported(StepFile):
    """manifest.json of an adapter that was trained elsewhere: the base it was said to be of, and the sha256 of every file.

    base: Pinned by its revision. source: Where it was brought from. lora: `LORA_FIELDS` of its adapter_config.json.
    """

    version: Literal[1] = 1
    kind: Literal["imported"] = "imported"
    created_at: int
    base: ModelSource
    source: str
    lora: dict[str, Any]
    files: list[Manifest.File] = Field(description="Every object below the prefix but the manifest itself.")


def vouched(content: bytes) -> Manifest | Imported:
    """What a manifest.json says, of a training here or of an adapter brought from elsewhere.

    Raises:
        ValidationError: It is neither; told as of a training's.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as problem:
        try:
            return Imported.model_validate_json(content)
        except ValidationError:
            raise problem from None


def lora_fields(config: object) -> dict[str, Any]:
    """The fields that make the adapter; anything beyond plain LoRA is refused rather than left out.

    Args:
        config: The decoded adapter_config.json.
    Raises:
        ValueError: Why it is not taken, as the end of a sentence.
    """
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError("it is no LoRA adapter")
    if not isinstance(config.get("target_modules"), list):
        raise ValueError("target_modules is no list of names")
    known = {*LORA_FIELDS, *DESCRIPTIVE}
    beyond = [key for key, value in config.items() if key not in known and value not in (None, False, {}, [], "none")]
    if beyond:
        raise ValueError(f"it uses {beyond[0]}, which the engine does not know")
    return {key: config[key] for key in LORA_FIELDS if config.get(key) is not None}


def header_length(first: bytes, size: int) -> int:
    """Bytes of a safetensors file's header.

    Args:
        first: The first LENGTH_BYTES of the file.
        size: Of the file.
    Raises:
        ValueError: It is no such file, as the end of a sentence.
    """
    length = int.from_bytes(first, "little")
    if len(first) < LENGTH_BYTES or not 2 <= length <= size - LENGTH_BYTES:
        raise ValueError(f"{WEIGHTS} is no safetensors file")
    if length > HEADER_BYTES:
        raise ValueError(f"the header of {WEIGHTS} has {length:,} bytes, and {HEADER_BYTES:,} are taken")
    return length


def check_weights(header: bytes, size: int, lora: dict[str, Any]) -> int:
    """Compare a safetensors header with the file's size and the adapter's configuration.

    Args:
        header: Its JSON, without the length before it.
        size: Of the file in bytes.
        lora: As `lora_fields` gave it.
    Returns:
        How many weights there are.
    Raises:
        ValueError: The file is cut, or holds something else than this LoRA, as the end of a sentence.
    """
    tensors = _tensors(header)
    _fill(tensors, size - LENGTH_BYTES - len(header))
    ranks = {lora.get("r"), *(lora.get("rank_pattern") or {}).values()}
    found: dict[str, dict[str, list[int]]] = {}
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
        if match is None:
            raise ValueError(f"it holds {name[:200]!r}, which is no part of a LoRA adapter")
        module = match["module"]
        if not any(module == target or module.endswith(f".{target}") for target in lora["target_modules"]):
            raise ValueError(f"it holds weights of {module[:200]!r}, which target_modules does not name")
        found.setdefault(module, {})[match["part"].replace("embedding_", "")] = tensor["shape"]
    for module, parts in found.items():
        a, b = parts.get("lora_A"), parts.get("lora_B")
        if a is None or b is None or len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise ValueError(f"the two matrices of {module[:200]!r} do not belong together")
        if a[0] not in ranks:
            raise ValueError(f"{module[:200]!r} has the rank {a[0]}, and {CONFIG} says {lora.get('r')}")
    if not found:
        raise ValueError(f"{WEIGHTS} holds no weights")
    return sum(math.prod(tensor["shape"]) for tensor in tensors.values())


def _tensors(header: bytes) -> dict[str, dict[str, Any]]:
    try:
        told = json.loads(header)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"the header of {WEIGHTS} is no JSON object")
    tensors = {name: tensor for name, tensor in told.items() if name != "__metadata__"}
    for name, tensor in tensors.items():
        if not (
            isinstance(tensor, dict)
            and tensor.get("dtype") in ITEM_BYTES
            and _are_counts(tensor.get("shape"))
            and _are_counts(tensor.get("data_offsets"))
            and len(tensor["data_offsets"]) == 2
        ):
            raise ValueError(
                f"the header of {WEIGHTS} does not say what {name[:200]!r} is: F32, F16 and BF16 are taken"
            )
    return tensors


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 48 for one in value)


def _fill(tensors: dict[str, dict[str, Any]], size: int) -> None:
    """Tensors lie one behind another and fill the file: it is neither cut nor does it hide anything."""
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda pair: pair[1]["data_offsets"]):
        begin, end = tensor["data_offsets"]
        if begin != at or end - begin != math.prod(tensor["shape"]) * ITEM_BYTES[tensor["dtype"]]:
            raise ValueError(f"{WEIGHTS} is damaged: {name[:200]!r} does not lie where its header says")
        at = end
    if at != size:
        raise ValueError(f"{WEIGHTS} is cut or damaged: it has {size:,} bytes of weights, and its header says {at:,}")
