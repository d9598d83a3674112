"""A base in memory and the adapters on it: loaded from checked files, switched without touching the base's weights.

With no adapter in force the base computes exactly what it computes alone: peft's layers hand the input straight to it.
Used by one thread at a time (the engine's). Reads folders; knows no HTTP and no S3.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError

from finetune.exit_codes import StepError
from finetune.inference.adapters import AdapterFiles
from finetune.model import loading, targets


class LoadedBase:
    """One base and its adapters.

    Args:
        folder: A base's files, as FETCH_MODEL leaves them.
        max_adapters: Adapters kept at once; the longest unused goes first.
        max_bytes: Of their weights together. The one asked for last always stays.
    Raises:
        StepError: `unsupported_model`, `out_of_memory`.
    """

    def __init__(self, folder: Path, *, max_adapters: int, max_bytes: int) -> None:
        self.device = loading.device()
        self.model: Any = loading.load_base(folder, self.device, loading.precision(self.device))
        self.context: int = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 4096)
        self._max_adapters, self._max_bytes = max_adapters, max_bytes
        self._peft: Any = None
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._active: str | None = None

    @property
    def adapters(self) -> list[str]:
        """Keys of the adapters in memory, the longest unused first."""
        return list(self._sizes)

    @property
    def precision(self) -> str:
        """Of the base's weights, such as `bfloat16`."""
        return str(self.model.dtype).removeprefix("torch.")

    def use(self, adapter: AdapterFiles | None) -> None:
        """Answer with `adapter` from now on, loading it if need be; None for the base alone.

        Raises:
            StepError: `manifest_mismatch`: its tensors are not those of this base.
        """
        if adapter is None:
            self._activate(None)
            return
        if adapter.key not in self._sizes:
            self._attach(adapter)
        self._sizes.move_to_end(adapter.key)
        self._activate(adapter.key)
        self._evict(keep=adapter.key)

    def forward(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        """Scores of the token after `ids`, which follow what `cache` holds.

        Args:
            ids: int64, shape (rows, tokens).
            cache: A transformers cache; grows.
        Returns:
            float, shape (rows, vocabulary).
        """
        with torch.inference_mode():
            answer = self.model(input_ids=ids.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
            scores: torch.Tensor = answer.logits[:, -1]
            return scores

    def _activate(self, key: str | None) -> None:
        if key == self._active or self._peft is None:
            return
        tuner = self._peft.base_model
        if key is None:
            tuner.disable_adapter_layers()
        else:
            if self._active not in self._sizes:
                tuner.enable_adapter_layers()
            tuner.set_adapter(key, inference_mode=True)
        self._active = key

    def _attach(self, adapter: AdapterFiles) -> None:
        config = LoraConfig(**adapter.lora, lora_dropout=0.0, task_type="CAUSAL_LM", inference_mode=True)
        self._active = "-"  # until it is settled: attaching may switch layers on
        try:
            with targets.by_name(self.model):
                if self._peft is None:
                    self._peft = PeftModel(self.model, config, adapter.key, low_cpu_mem_usage=True)
                else:
                    self._peft.add_adapter(adapter.key, config, low_cpu_mem_usage=True)
                loaded = self._peft.load_adapter(
                    str(adapter.folder), adapter.key, low_cpu_mem_usage=True, torch_device=str(self.device)
                )
        except (ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as problem:
            self._drop(adapter.key)
            raise _foreign(str(problem)) from problem
        if odd := [*loaded.missing_keys, *loaded.unexpected_keys]:
            self._drop(adapter.key)
            raise _foreign(f"{len(odd)} tensors are missing or too many, such as {odd[0]}")
        self._peft.eval()
        self._sizes[adapter.key] = adapter.size

    def _evict(self, keep: str) -> None:
        while len(self._sizes) > self._max_adapters or sum(self._sizes.values()) > self._max_bytes:
            oldest = next(iter(self._sizes))
            if oldest == keep:
                return
            del self._sizes[oldest]
            self._peft.delete_adapter(oldest)
            self._peft.base_model.set_adapter(keep, inference_mode=True)

    def _drop(self, key: str) -> None:
        """Forget an adapter that could not be loaded whole."""
        if self._peft is not None and key in self._peft.peft_config:
            self._peft.delete_adapter(key)
        if self._peft is not None:
            self._peft.base_model.disable_adapter_layers()
            self._active = None


def free() -> None:
    """Give memory of dropped models back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _foreign(why: str) -> StepError:
    return StepError("manifest_mismatch", f"The adapter does not fit its base: {why.splitlines()[0]}.", param="model")
