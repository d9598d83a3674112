"""Rows of several answers in one cache of keys and values: joined, left and cut so that what each row reads stays its own.

Rows end at the same place and begin at different ones: the shorter are padded on the left, which attention masks and
positions make invisible. Holds for caches that keep all tokens or a sliding window of them; others are not joined.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def can_be_joined(model: Any) -> bool:
    """Whether rows of different lengths can stand in one batch of a model: what it keeps of a token belongs to that token
    alone (no running state), and it takes positions."""
    takes = inspect.signature(model.forward).parameters
    return _keeps_tokens(DynamicCache(config=model.config)) and {"position_ids", "attention_mask"} <= set(takes)


def _keeps_tokens(cache: DynamicCache) -> bool:
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def width(cache: DynamicCache | None) -> int:
    """Tokens of the longest row, padding counted."""
    return int(cache.get_seq_length()) if cache is not None else 0


def join(first: DynamicCache, second: DynamicCache) -> None:
    """Put the rows of `second` below those of `first`, which grows; if there is no memory for it, it stays as it was."""
    wide = max(width(first), width(second))
    pairs = [
        (mine, other) for mine, other in zip(first.layers, second.layers, strict=True) if mine.is_initialized
    ]  # a layer that is not reads the keys of another one
    made = []
    for mine, other in pairs:
        kept = max(mine.keys.shape[-2], other.keys.shape[-2])
        made.append(
            (
                torch.cat([_padded(mine.keys, kept), _padded(other.keys, kept)]),
                torch.cat([_padded(mine.values, kept), _padded(other.values, kept)]),
            )
        )
    for (mine, _), (keys, values) in zip(pairs, made, strict=True):
        mine.keys, mine.values = keys, values
        _settle(mine, wide)


def keep(cache: DynamicCache, rows: Sequence[int], longest: int) -> None:
    """Keep only some rows, and no more padding than the longest of them leaves.

    Args:
        cache: Shrinks.
        rows: Indices of those that stay; at least one. One that is named twice becomes two.
        longest: Tokens of the longest of them.
    """
    if not _keeps_tokens(cache):
        cache.batch_select_indices(torch.tensor(list(rows)))
        return
    surplus = width(cache) - longest
    if not surplus and list(rows) == list(range(cache.layers[0].keys.shape[0])):
        return
    for layer in cache.layers:
        if not layer.is_initialized:
            continue
        chosen = torch.tensor(list(rows), device=layer.keys.device)
        keys, values = layer.keys[chosen], layer.values[chosen]
        kept = min(keys.shape[-2], longest)
        layer.keys, layer.values = keys[..., keys.shape[-2] - kept :, :], values[..., values.shape[-2] - kept :, :]
        _settle(layer, layer_length(layer) - surplus)


def layer_length(layer: Any) -> int:
    """Tokens a layer has seen, padding counted."""
    return int(layer.cumulative_length) if layer.is_sliding else int(layer.keys.shape[-2])


def _settle(layer: Any, length: int) -> None:
    if layer.is_sliding:
        layer.cumulative_length = length


def _padded(states: torch.Tensor, length: int) -> torch.Tensor:
    """Zeros before `states` (rows, heads, tokens, dim), to `length` tokens."""
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))


def masked(lengths: Sequence[int], wide: int, device: torch.device) -> torch.Tensor | None:
    """What of each row is no padding: int64, shape (rows, wide), 1 for the last `lengths[row]`; None if there is none."""
    if all(length == wide for length in lengths):
        return None
    begins = torch.tensor([wide - length for length in lengths], device=device)
    return (torch.arange(wide, device=device)[None] >= begins[:, None]).long()
