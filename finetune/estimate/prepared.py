"""The estimate once PREPARE_DATA has counted: examples, tokens and steps are exact, memory and time are still ranges.

Told before a GPU minute is spent. The service reckons again with its earlier runs and its prices, from `Facts`. No torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from finetune.config import JobSpec
from finetune.estimate import device, shape
from finetune.estimate.memory import Fit, Load, fit
from finetune.estimate.ranges import exactly
from finetune.estimate.reckon import Counted, Known, complete
from finetune.estimate.result import Basis, Estimate, Where
from finetune.estimate.shape import Shape
from finetune.steps import Base, PrepareStep, Resolved, Room


class Facts(BaseModel):
    """What PREPARE_DATA found that time and memory depend on.

    parameters, units, vocabulary: of the base, as `finetune.estimate.shape.Shape`. tokens, trained_tokens: of one epoch.
    bytes_a_token: bytes of text that make one token of the training rows.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    parameters: int
    units: int
    vocabulary: int
    n_examples: int
    n_validation: int
    n_epochs: int
    batch_size: int
    total_steps: int
    tokens: int
    trained_tokens: int
    longest: int
    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool = False
    bytes_a_token: float | None = None

    @property
    def shape(self) -> Shape:
        """Of the base."""
        return Shape(self.parameters, self.units, self.vocabulary, read=True)


def facts(base: Base, folder: Path, resolved: Resolved, bytes_a_token: float | None) -> Facts:
    """What there is to know of a prepared dataset.

    Args:
        base: base.json.
        folder: The base's.
        resolved: resolved.json.
        bytes_a_token: As PREPARE_DATA counted.
    """
    found = shape.of_folder(folder) or shape.of_parameters(base.parameters)
    return Facts(
        parameters=base.parameters,
        units=found.units,
        vocabulary=found.vocabulary,
        bytes_a_token=bytes_a_token,
        **{name: getattr(resolved, name) for name in Facts.model_fields if hasattr(resolved, name)},
    )


def cut(step: PrepareStep, base: Base, folder: Path, room: Room, longest: int) -> dict[str, Any]:
    """The fields of resolved.json that memory decides; none where it is not known how much there is.

    Args:
        step: What is trained.
        base: base.json.
        folder: The base's.
        room: Memory for the training.
        longest: Tokens of the longest example.
    """
    if room.bytes is None:
        return {}
    load = Load(
        shape=shape.of_folder(folder) or shape.of_parameters(base.parameters),
        technique=step.technique,
        lora=step.lora,
        device=device.Device(room.kind),
        longest=longest,
        dpo=step.data.format == "preference",
        packing=step.hyperparameters.packing,
    )
    found = fit(load, room.bytes)
    return {"micro_batch_tokens": found.tokens, "gradient_checkpointing": found.recompute}


def by_hand(made: Facts, step: PrepareStep, base: Base) -> Estimate:
    """The estimate by the rules alone, for this machine."""
    options: dict[str, Any] = {name: getattr(step, name) for name in ("technique", "hyperparameters", "data", "lora")}
    options |= {"method": {"type": "dpo" if step.data.format == "preference" else "supervised"}}
    spec = JobSpec(model="base", training_file="train", **options)
    return expected(made, spec, Known(device.here(), made.shape), base.id)


def expected(made: Facts, spec: JobSpec, known: Known, model: str) -> Estimate:
    """Time, memory and cost of a prepared dataset.

    Args:
        made: What PREPARE_DATA found.
        spec: The job.
        known: Device, earlier runs and prices.
        model: What to call the base.
    """
    exact = {
        "n_epochs": made.n_epochs,
        "batch_size": made.batch_size,
    }
    asked = spec.model_copy(update={"hyperparameters": spec.hyperparameters.model_copy(update=exact)})
    counted = Counted(
        examples=exactly(made.n_examples),
        validation=exactly(made.n_validation),
        tokens=exactly(made.tokens),
        trained=exactly(made.trained_tokens),
        longest=exactly(made.longest),
    )
    where = Where(kind=known.device.kind, name=known.device.name, count=known.device.count, memory=known.device.memory)
    basis = Basis(rows_read=made.n_examples, complete=True, tokens="tokenizer", seconds=None, memory=None)
    told = Estimate(model=model, technique=spec.technique, device=where, basis=basis)
    if made.micro_batch_tokens is not None:
        known = replace(known, cut=Fit(made.micro_batch_tokens, made.gradient_checkpointing))
    return complete(told, asked, counted, known)
