"""An adapter folded into its base: in float32, then cast, and shown to compute what base and adapter compute.

Merging in bfloat16 rounds every product and changes answers; a merge in float32 agrees to the fourth decimal. Logits are
compared twice: merged float32 weights with base + adapter (a disagreement fails), and the files as written with the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.arrays import Examples
from finetune.exit_codes import StepError
from finetune.model import loading
from finetune.steps import ExportResult

TOLERANCE = 1e-3
"""Of the largest logit: how far merged float32 weights may be from base + adapter."""
PROBES, PROBE_TOKENS = 4, 256

Logits = list[torch.Tensor]


@dataclass(frozen=True)
class Agreement:
    """How close two models are on the same tokens.

    Attributes:
        difference: The largest between two logits.
        scale: The largest logit.
        same: Share of positions at which both find the same token most likely.
    """

    difference: float
    scale: float
    same: float


def merged(base: Path, adapter: Path, probes: list[list[int]]) -> tuple[Any, Logits, Agreement]:
    """Base and adapter as one float32 model on the CPU.

    Args:
        base: Its folder.
        adapter: A PEFT folder.
        probes: Tokens to compare on.
    Returns:
        The transformers model, what base + adapter answered, and how well the model agrees.
    Raises:
        StepError: `manifest_mismatch`: the adapter is of another base; `merge_mismatch`.
    """
    where = torch.device("cpu")
    model = loading.load_adapter(loading.load_base(base, where, "float32"), adapter)
    apart = logits(model, probes)
    whole = model.merge_and_unload(safe_merge=True)
    agreement = compare(apart, logits(whole, probes))
    if not agreement.difference <= TOLERANCE * max(1.0, agreement.scale):
        told = f"Merged weights answer otherwise than base and adapter: a logit differs by {agreement.difference:.3g}."
        raise StepError("merge_mismatch", told)
    return whole, apart, agreement


def reread(folder: Path, apart: Logits, probes: list[list[int]]) -> Agreement:
    """How well the files of a merged model agree with base + adapter, computed in float32."""
    return compare(apart, logits(loading.load_base(folder, torch.device("cpu"), "float32"), probes))


def probes_of(prepared: Path | None, base: Path) -> list[list[int]]:
    """Tokens to compare models on: examples of the dataset, held out ones first; without a dataset tokens by a fixed seed."""
    if prepared is not None:
        for split in ("validation", "train"):
            examples = Examples(prepared, split)
            if len(examples):
                at = {index * len(examples) // PROBES for index in range(PROBES)}
                return [examples[index].tokens[:PROBE_TOKENS].tolist() for index in sorted(at)]
    size = int(json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    drawn = np.random.default_rng(0).integers(0, size, (PROBES, 64))
    return [[int(token) for token in row] for row in drawn]


def logits(model: Any, probes: list[list[int]]) -> Logits:
    """Logits of each probe, shape (tokens, vocabulary), float32."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids])).logits[0].float() for ids in probes]


def compare(one: Logits, other: Logits) -> Agreement:
    """How close two models' logits are, over all probes."""
    pairs = list(zip(one, other, strict=True))
    hits = torch.cat([(a.argmax(-1) == b.argmax(-1)) for a, b in pairs])
    return Agreement(
        difference=max(float((a - b).abs().max()) for a, b in pairs),
        scale=max(float(a.abs().max()) for a, _ in pairs),
        same=float(hits.float().mean()),
    )


def as_result(
    agreement: Agreement | None, cast: Agreement | None, kind: str | None, tensors: int | None
) -> ExportResult:
    """export.json."""
    return ExportResult(
        dtype=kind,
        difference=agreement.difference if agreement else None,
        same=agreement.same if agreement else None,
        cast_difference=cast.difference if cast else None,
        cast_same=cast.same if cast else None,
        gguf_tensors=tensors,
    )
