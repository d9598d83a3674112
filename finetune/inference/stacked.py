"""Several LoRA adapters in one forward pass: every row of a batch with its own, with none, or with several weighed by token.

peft can do it too (`adapter_names`), adapter by adapter in every layer; here the adapters in use stand side by side in one
pair of matrices a layer, and a gate a row decides which of them it feels. So a step costs the same whatever its rows ask
for. A row without adapters gets exact zeros: its scores are those of the base in a batch of that shape, to the bit.

Arrow: Ostapenko et al. 2024, arXiv:2405.11157; prototypes as peft computes them. No other module writes the hooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import ArrowConfig
from peft.tuners.lora.arrow import ArrowLoraLinearLayer
from peft.tuners.lora.layer import Linear, LoraLayer
from torch.nn.functional import linear

Mix = tuple[str, ...]
"""The adapters of one row: none, one, or several among which each token chooses (arrow)."""

ARROW_TOP = 3
"""Adapters a token listens to at most: peft's own default, as is the temperature of 1."""
ARROW_SEED = 0
"""Of the power iteration that finds an adapter's main direction."""

ROUTED = ".experts."
"""In the name of a layer that is given only the tokens routed to it: of which row they are is not told."""


@dataclass(frozen=True)
class _Weights:
    """The adapters of one layer side by side: a (sum of ranks, in), b (out, sum of ranks); rank and scaling of each."""

    a: torch.Tensor
    b: torch.Tensor
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]


class Stacked:
    """The adapters beside a peft model's layers, while those of peft are switched off."""

    def __init__(self) -> None:
        self._watched: set[Any] = set()
        self._members: Mix = ()
        self._weights: dict[Any, _Weights | None] = {}
        self._directions: dict[tuple[Any, str], torch.Tensor] = {}
        self._alone: str | None = None
        self._rows: list[Mix] | None = None
        self._gates: dict[Any, torch.Tensor] = {}

    def watch(self, model: Any) -> None:
        """Stand beside the layers of a peft model that have adapters by now."""
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and layer not in self._watched:
                self._watched.add(layer)
                layer.register_forward_hook(self._add)

    def forget(self, key: str) -> None:
        """An adapter is gone."""
        if key in self._members:
            self._members, self._weights = (), {}
        self._directions = {place: found for place, found in self._directions.items() if place[1] != key}

    def choose(self, rows: Sequence[Mix] | None, in_use: Iterable[str] = ()) -> None:
        """What the rows of the next passes feel; None for nothing at all.

        Args:
            rows: Of each row its adapters, all of them loaded.
            in_use: Adapters that other rows will ask for soon, so that the stack is not made anew for each.
        """
        wanted = {key for mix in rows or () for key in mix}
        if not wanted:
            self._rows = None
            return
        if self._rows != rows:
            self._rows, self._gates = list(rows or ()), {}
        self._alone = next(iter(wanted)) if len(wanted) == 1 else None
        if self._alone is not None:
            return
        useful = wanted | set(in_use)
        if not wanted <= set(self._members) or len(self._members) > 2 * len(useful):
            self._members, self._weights, self._gates = tuple(sorted(useful)), {}, {}

    def _add(self, layer: Any, given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Forward hook: what a layer gives, and what the adapters of each row add to it."""
        rows = self._rows
        if rows is None:
            return None
        weights = self._of(layer)
        if weights is None:
            return None
        states = given[0].to(weights.a.dtype)
        if states.ndim == 2 and (
            len(set(rows)) > 1 or len(rows[0]) > 1
        ):  # a layer that is given the tokens of all rows in one
            states = states.reshape(len(rows), -1, states.shape[-1])
        narrow = linear(states, weights.a) * self._gate(layer, weights, states, rows)
        return (output + linear(narrow, weights.b).reshape(output.shape)).to(output.dtype)

    def _of(self, layer: Any) -> _Weights | None:
        if self._alone is not None:
            return _side_by_side(layer, (self._alone,))
        if layer not in self._weights:
            self._weights[layer] = _side_by_side(layer, self._members)
        return self._weights[layer]

    def _gate(self, layer: Any, weights: _Weights, states: torch.Tensor, rows: list[Mix]) -> torch.Tensor:
        """How much of each rank a row feels: shape (rows, 1 or tokens, sum of ranks), or (rank,) where all rows are alike."""
        members = (self._alone,) if self._alone is not None else self._members
        shape = (self._alone, weights.ranks, weights.scalings)
        if shape not in self._gates:
            felt = [
                [scaling if mix == (key,) else 0.0 for key, scaling in zip(members, weights.scalings, strict=True)]
                for mix in rows
            ]
            gates = _spread(torch.tensor(felt, device=states.device), weights)[:, None]
            self._gates[shape] = gates[0, 0] if len(set(rows)) == 1 else gates
        gate = self._gates[shape].to(states.dtype)
        several = {mix for mix in rows if len(mix) > 1}
        if not several:
            return gate
        gate = gate.expand(len(rows), states.shape[1], -1).clone()
        for mix in several:
            chosen = [row for row, other in enumerate(rows) if other == mix]
            gate[chosen] = self._arrow(layer, weights, states[chosen], mix)
        return gate

    def _arrow(self, layer: Any, weights: _Weights, states: torch.Tensor, mix: Mix) -> torch.Tensor:
        """How much a token listens to each adapter of a mix, by how it lies along their main directions."""
        there = [key for key in mix if key in layer.lora_A]
        shares = states.new_zeros((*states.shape[:2], len(self._members)))
        if there:
            directions = torch.stack([self._direction(layer, key) for key in there]).to(states.dtype)
            alike = (states @ directions.T).abs()
            best, which = alike.topk(min(ARROW_TOP, len(there)), dim=-1)
            listened = torch.full_like(alike, float("-inf")).scatter(-1, which, best).softmax(dim=-1)
            places = [self._members.index(key) for key in there]
            shares[..., places] = listened * listened.new_tensor([weights.scalings[place] for place in places])
        return _spread(shares, weights)

    def _direction(self, layer: Any, key: str) -> torch.Tensor:
        if (layer, key) not in self._directions:
            a, b = layer.lora_A[key].weight, layer.lora_B[key].weight
            self._directions[layer, key] = main_direction(a, b)
        return self._directions[layer, key]


def is_plain(model: Any, key: str) -> bool:
    """Whether an adapter of a peft model is nothing but pairs of matrices beside linear layers, so that it can be stacked."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if key in layer.lora_embedding_A or key in layer.lora_variant:
            return False
        if key not in layer.lora_A:
            continue
        if not isinstance(layer, Linear) or layer.lora_B[key].bias is not None or ROUTED in name:
            return False
    return True


def main_direction(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The input direction that b @ a stretches most.

    Args:
        a: Shape (rank, in).
        b: Shape (out, rank).
    Returns:
        float32, shape (in,), of length 1.
    """
    config = ArrowConfig(rng_seed=ARROW_SEED)
    config.task_adapter_names, config.gks_adapter_names = [], []
    return ArrowLoraLinearLayer(a.shape[1], config).top_right_singular_vec_from_BA(a, b)


def _side_by_side(layer: Any, members: Sequence[str]) -> _Weights | None:
    there = [key in layer.lora_A for key in members]
    if not any(there):
        return None
    present = [key for key, here in zip(members, there, strict=True) if here]
    ranks = tuple(layer.lora_A[key].weight.shape[0] if here else 0 for key, here in zip(members, there, strict=True))
    scalings = tuple(float(layer.scaling[key]) if here else 0.0 for key, here in zip(members, there, strict=True))
    a, b = ([part[key].weight for key in present] for part in (layer.lora_A, layer.lora_B))
    if len(present) == 1:
        return _Weights(a[0], b[0], ranks, scalings)
    kind = torch.promote_types(a[0].dtype, a[-1].dtype)
    return _Weights(
        torch.cat([one.to(kind) for one in a]), torch.cat([one.to(kind) for one in b], dim=1), ranks, scalings
    )


def _spread(shares: torch.Tensor, weights: _Weights) -> torch.Tensor:
    """Of a share an adapter, one a rank: shape (…, members) to (…, sum of ranks)."""
    ranks = torch.tensor(weights.ranks, device=shares.device)
    return shares.repeat_interleave(ranks, dim=-1)
