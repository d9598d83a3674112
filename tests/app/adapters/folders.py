"""PEFT folders as bytes, made without torch."""

from __future__ import annotations

import json
import math
from typing import Any

from tests.app.conftest import BUCKET, MODEL

SHAPES = {"lora_A": [4, 16], "lora_B": [32, 4]}
REVISION = "a" * 64


def safetensors(tensors: dict[str, list[int]], *, dtype: str = "F32", cut: int = 0, **metadata: str) -> bytes:
    """A file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, shape in tensors.items():
        size = math.prod(shape) * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + bytes(at)
    return whole[: len(whole) - cut]


def weights(**more: Any) -> bytes:
    """The weights of a small adapter."""
    return safetensors(
        {f"base_model.model.model.layers.0.self_attn.q_proj.{part}.weight": shape for part, shape in SHAPES.items()},
        **more,
    )


def config(**fields: Any) -> bytes:
    """Its adapter_config.json."""
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "lora_dropout": 0.1,
            "base_model_name_or_path": MODEL, "revision": REVISION, "task_type": "CAUSAL_LM", "bias": "none"}  # fmt: skip
    return json.dumps(told | fields).encode()


def put(s3: Any, key: str, **files: bytes | None) -> str:
    """A folder on S3; its address. `adapter_config` and `adapter_model` are there unless given otherwise; None: is not."""
    given: dict[str, bytes | None] = {"adapter_config.json": config(), "adapter_model.safetensors": weights()}
    names = {"adapter_config": "adapter_config.json", "adapter_model": "adapter_model.safetensors"}
    given |= {names.get(name, name): body for name, body in files.items()}
    for name, body in given.items():
        if body is not None:
            s3.put_object(Bucket=BUCKET, Key=f"{key}/{name}", Body=body)
    return f"s3://{BUCKET}/{key}/"
