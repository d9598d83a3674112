"""A base in memory and the adapters on it: loaded from checked files, felt row by row without touching the base's weights.

With no adapter asked for, the base computes exactly what it computes alone: peft's layers hand the input straight to it.
Used by one thread at a time (the engine's). Reads folders; knows no HTTP and no S3.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors import SafetensorError

from finetune.exit_codes import StepError
from finetune.inference import rows
from finetune.inference.adapters import AdapterFiles
from finetune.inference.stacked import Mix, Stacked, is_plain
from finetune.model import loading, targets


class LoadedBase:
    """One base and its adapters.

    Args:
        folder: A base's files, as FETCH_MODEL leaves them.
        max_adapters: Adapters kept at once; the longest unused goes first, those in use never.
        max_bytes: Of their weights together.
    Raises:
        StepError: `unsupported_model`, `out_of_memory`.
    """

    def __init__(self, folder: Path, *, max_adapters: int, max_bytes: int) -> None:
        self.device = loading.device()
        self.model: Any = loading.load_base(folder, self.device, loading.precision(self.device))
        self.context: int = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 4096)
        self.joinable = rows.can_be_joined(self.model)
        self._max_adapters, self._max_bytes = max_adapters, max_bytes
        self._peft: Any = None
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._plain: set[str] = set()
        self._stacked = Stacked()
        self._active: str | None = None

    @property
    def adapters(self) -> list[str]:
        """Keys of the adapters in memory, the longest unused first."""
        return list(self._sizes)

    @property
    def precision(self) -> str:
        """Of the base's weights, such as `bfloat16`."""
        return str(self.model.dtype).removeprefix("torch.")

    def has_room(self, adapters: Iterable[AdapterFiles], in_use: Collection[str]) -> bool:
        """Whether adapters can be in memory beside those in use."""
        sizes = {key: self._sizes[key] for key in in_use} | {adapter.key: adapter.size for adapter in adapters}
        return len(sizes) <= self._max_adapters and sum(sizes.values()) <= self._max_bytes

    def load(self, adapters: Sequence[AdapterFiles], in_use: Collection[str] = ()) -> None:
        """Have adapters in memory; the longest unused others go if there are too many.

        Args:
            adapters: Those that are needed now.
            in_use: Keys of those that answers under way need.
        Raises:
            StepError: `manifest_mismatch`: the tensors of one are not those of this base.
        """
        for adapter in adapters:
            if adapter.key not in self._sizes:
                self._attach(adapter)
            self._sizes.move_to_end(adapter.key)
        self._evict({*in_use, *(adapter.key for adapter in adapters)})

    def is_plain(self, key: str) -> bool:
        """Whether rows with a loaded adapter can stand in one batch with rows of others."""
        return key in self._plain

    def forward(
        self,
        ids: torch.Tensor,
        cache: Any,
        mixes: Sequence[Mix] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        in_use: Iterable[str] = (),
    ) -> torch.Tensor:
        """Scores of the token after `ids`, which follow what `cache` holds.

        Args:
            ids: int64, shape (rows, tokens), the rows padded on the left.
            cache: A transformers cache; grows.
            mixes: The adapters of each row, loaded; None for the base alone. One that is not plain stands in every row.
            lengths: Tokens of each row with these; left out: all rows are whole.
            in_use: Adapters that other rows have.
        Returns:
            float, shape (rows, vocabulary).
        """
        place = {} if lengths is None or not self.joinable else self._places(ids, cache, lengths)
        with torch.inference_mode():
            self._feel(mixes, in_use)
            answer = self.model(
                input_ids=ids.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1, **place
            )
            scores: torch.Tensor = answer.logits[:, -1]
            return scores

    def hidden(self, ids: Sequence[int]) -> torch.Tensor:
        """What the base alone makes of a text: float32, shape (tokens, width)."""
        with torch.inference_mode():
            self._feel(None, ())
            body = self.model.get_decoder()
            states: torch.Tensor = body(input_ids=torch.tensor([list(ids)], device=self.device), use_cache=False)[0][0]
            return states.float()

    def _places(self, ids: torch.Tensor, cache: Any, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        """Mask and positions, where rows are not equally long."""
        mask = rows.masked(lengths, rows.width(cache) + ids.shape[1], self.device)
        if mask is None:
            return {}
        behind = torch.arange(ids.shape[1], device=self.device) - ids.shape[1]
        positions = torch.tensor(list(lengths), device=self.device)[:, None] + behind
        return {"attention_mask": mask, "position_ids": positions.clamp(min=0)}

    def _feel(self, mixes: Sequence[Mix] | None, in_use: Iterable[str]) -> None:
        asked = {key for mix in mixes or () for key in mix}
        odd = next((key for key in asked if key not in self._plain), None)
        self._stacked.choose(None if odd else mixes, in_use)
        self._activate(odd)

    def _activate(self, key: str | None) -> None:
        """Switch peft's own layers on for an adapter that cannot be stacked; None: off."""
        if key == self._active or self._peft is None:
            return
        tuner = self._peft.base_model
        if key is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            tuner.set_adapter(key, inference_mode=True)
        self._active = key

    def _attach(self, adapter: AdapterFiles) -> None:
        config = LoraConfig(**adapter.lora, lora_dropout=0.0, task_type="CAUSAL_LM", inference_mode=True)
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
        self._stacked.watch(self._peft)
        if is_plain(self._peft, adapter.key):
            self._plain.add(adapter.key)
        self._off()

    def _evict(self, needed: Collection[str]) -> None:
        for key in list(self._sizes):
            if len(self._sizes) <= self._max_adapters and sum(self._sizes.values()) <= self._max_bytes:
                return
            if key not in needed:
                del self._sizes[key]
                self._drop(key)

    def _drop(self, key: str) -> None:
        """Forget an adapter, also one that could not be loaded whole."""
        self._plain.discard(key)
        self._stacked.forget(key)
        if self._peft is not None:
            if key in self._peft.peft_config:
                if others := [other for other in self._peft.peft_config if other != key]:
                    self._peft.base_model.set_adapter(others[0], inference_mode=True)  # peft warns if it has to choose
                self._peft.delete_adapter(key)
            self._off()

    def _off(self) -> None:
        self._peft.base_model.disable_adapter_layers()
        self._active = None


def free() -> None:
    """Give memory of dropped models back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _foreign(why: str) -> StepError:
    return StepError("manifest_mismatch", f"The adapter does not fit its base: {why.splitlines()[0]}.", param="model")
