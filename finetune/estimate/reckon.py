"""The estimate itself: from a job, a sample of its dataset and what is known of base, device and earlier runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.config import MIN_EXAMPLES, JobSpec
from finetune.data.formats import paragraph, too_few
from finetune.data.resolve import auto_batch, auto_epochs, steps_per_epoch
from finetune.estimate import device as devices
from finetune.estimate import memory, speed
from finetune.estimate.device import Device
from finetune.estimate.lengths import Lengths
from finetune.estimate.memory import Fit
from finetune.estimate.ranges import Range, exactly, rounded, times, whole
from finetune.estimate.result import Basis, Estimate, Problem, Where
from finetune.estimate.sample import Sample
from finetune.estimate.shape import Shape
from finetune.estimate.speed import Measured
from finetune.exit_codes import StepError
from finetune.export import llama
from finetune.model import packs

TWICE = "Memory is short: activations will be computed twice, which takes about a third longer."
SHORT = "The training may need more memory than there is: lower max_length or lora.r, or use technique qlora."
LOOKED_AT = 200
"""Numbers of examples within the range for which steps are counted: epochs and batch size change with it."""


@dataclass(frozen=True)
class Known:
    """What is known besides job and dataset.

    Attributes:
        device: Where it will run.
        shape: Of the base; None if nothing tells its size.
        runs: Earlier ones of the same technique on this kind of device, the newest first.
        base: The base's id, as runs have it.
        prices: By profile and device (`finetune.estimate.device.price`).
        currency: Theirs.
        cut: How the training is cut for the memory there is, once PREPARE_DATA has settled it.
    """

    device: Device
    shape: Shape | None = None
    runs: Sequence[Measured] = ()
    base: str = ""
    prices: Mapping[str, float] = field(default_factory=dict)
    currency: str | None = None
    cut: Fit | None = None


@dataclass(frozen=True)
class Counted:
    """The dataset in numbers."""

    examples: Range
    validation: Range
    tokens: Range
    trained: Range
    longest: Range


def estimate(
    spec: JobSpec, train: Sample, lengths: Lengths, validation: tuple[Sample, Lengths] | None, known: Known
) -> Estimate:
    """What a job takes.

    Args:
        spec: The job.
        train: The beginning of its dataset.
        lengths: Of its rows.
        validation: The same of the validation file.
        known: What else is known.
    """
    seen = [train, *([validation[0]] if validation else [])]
    basis = Basis(
        rows_read=sum(sample.rows for sample in seen),
        complete=all(sample.complete for sample in seen),
        tokens=lengths.basis,
        seconds=None,
        memory=None,
    )
    told = Estimate(model=spec.model, technique=spec.technique, device=_where(known.device), basis=basis)
    if problem := problem_of(spec, train, lengths, validation):
        rows = whole(train.in_all) if train.items else None
        return told.model_copy(update={"examples": rows, "error": problem})
    counted = _count(spec, train, lengths, validation)
    return complete(told, spec, counted, known)


def complete(told: Estimate, spec: JobSpec, counted: Counted, known: Known) -> Estimate:
    """Steps, time, memory and cost of a dataset in numbers."""
    epochs, batch, steps = _steps(spec, whole(counted.examples))
    in_all = times(counted.tokens, (float(epochs[0]), float(epochs[1])))
    seconds, memory_, basis = _resources(spec, counted, in_all, batch, steps, known, told.basis)
    price = devices.price(known.prices, spec.execution, known.device)
    warnings = list(told.warnings)
    limit = spec.hyperparameters.max_length
    if counted.longest[1] > limit and told.basis.tokens != "tokenizer":
        warnings.append(f"Some examples may be longer than max_length ({limit:,} tokens): see data.overlength.")
    if (cut := _cut(spec, counted, known)) is not None and cut.recompute:
        warnings.append(TWICE if cut.fits else SHORT)
    if spec.execution.max_runtime_seconds is not None and seconds and seconds[1] > spec.execution.max_runtime_seconds:
        warnings.append("The training may take longer than execution.max_runtime_seconds.")
    return told.model_copy(
        update={
            "examples": whole(counted.examples),
            "validation_examples": whole(counted.validation),
            "tokens": whole(counted.tokens),
            "trained_tokens": whole(counted.trained),
            "longest": whole(_longest(spec, counted)),
            "n_epochs": epochs,
            "batch_size": batch,
            "total_steps": steps,
            "seconds": rounded(seconds) if seconds else None,
            "peak_memory_bytes": whole(rounded(memory_)) if memory_ else None,
            "cost": rounded(times(seconds, exactly(price / 3600))) if seconds and price is not None else None,
            "currency": known.currency if seconds and price is not None else None,
            "basis": basis,
            "warnings": warnings,
        }
    )


def problem_of(
    spec: JobSpec, train: Sample, lengths: Lengths, validation: tuple[Sample, Lengths] | None
) -> Problem | None:
    """Why the job would fail, as far as the rows read tell; worded as the job would."""
    try:
        _require(train, lengths, "training_file", MIN_EXAMPLES)
        if validation is not None:
            _require(*validation, "validation_file", 1)
    except StepError as error:
        return as_problem(error)
    return None


def require(spec: JobSpec, base: Path | None) -> None:
    """Refuse a base that cannot become what the job asks for, as FETCH_MODEL will.

    Args:
        spec: The job.
        base: Its folder, if it can be read; None lets it pass.
    Raises:
        StepError: `unsupported_operation`.
    """
    if spec.output.gguf and base is not None:
        llama.require(base)
    if spec.hyperparameters.packing and base is not None:
        packs.require(base)


def as_problem(error: StepError) -> Problem:
    """A failure as it is shown."""
    return Problem(code=error.code.name, message=error.message, param=error.param, lines=error.lines)


def _require(sample: Sample, lengths: Lengths, param: str, least: int) -> None:
    name = ", ".join(sample.errors) if len(sample.errors) == 1 else param
    if (found := sample.problem()) is not None:
        where, errors, count = found
        told = f"{where}: {paragraph(errors, count)}"
        raise StepError("invalid_file_format", told, param=param, lines=[error.line for error in errors])
    if lengths.problem is not None:
        code, errors, count = lengths.problem
        told = f"{name}: {paragraph(errors, count)}"
        raise StepError(code, told, param=param, lines=[error.line for error in errors])
    if sample.complete and not sample.rows:
        raise StepError("invalid_file_format", f"{name} is empty.", param=param)
    if sample.complete and len(sample.items) < least:
        raise too_few(name, len(sample.items), param=param, minimum=least)
    if sample.complete and lengths.untrained == len(sample.items):
        raise StepError("no_trainable_tokens", param=param)


def _count(spec: JobSpec, train: Sample, lengths: Lengths, validation: tuple[Sample, Lengths] | None) -> Counted:
    rows = train.in_all
    share = lengths.kept / max(1, len(train.items))
    usable = (rows[0] * share, rows[1] * share)
    if train.complete:
        usable = exactly(lengths.kept)
    if validation is not None:
        held = exactly(validation[1].kept) if validation[0].complete else validation[0].in_all
    elif spec.data.validation_split:
        low, high = (_held_out(round(count), spec.data.validation_split) for count in usable)
        held = (float(low), float(high))
        usable = usable[0] - held[0], usable[1] - held[1]
    else:
        held = exactly(0)
    scattered = exactly(1.0) if train.complete and not spec.data.validation_split else _scatter(lengths)
    each = (lengths.tokens[0] / max(1, lengths.kept), lengths.tokens[1] / max(1, lengths.kept))
    trained = (lengths.trained[0] / max(1, lengths.kept), lengths.trained[1] / max(1, lengths.kept))
    longest = lengths.longest if train.complete else (lengths.longest[0], lengths.longest[1] * 2)
    return Counted(
        examples=usable,
        validation=held,
        tokens=times(times(each, usable), scattered),
        trained=times(times(trained, usable), scattered),
        longest=longest,
    )


def _scatter(lengths: Lengths) -> Range:
    """How far the mean length of the rows not read, or not held out, may be from that of the rows read."""
    return 1 / (1 + lengths.uncertainty), 1 + lengths.uncertainty


def _held_out(count: int, share: float) -> int:
    return min(count - 1, max(1, round(count * share))) if count > 1 else 0


def _steps(spec: JobSpec, examples: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Epochs, batch size and steps, over all numbers of examples that may be."""
    asked = spec.hyperparameters
    low, high = max(1, examples[0]), max(1, examples[1])
    stride = max(1, (high - low) // LOOKED_AT)
    found = []
    for count in {*range(low, high + 1, stride), high}:
        epochs = auto_epochs(count) if asked.n_epochs == "auto" else asked.n_epochs
        batch = auto_batch(count) if asked.batch_size == "auto" else asked.batch_size
        steps = steps_per_epoch(count, batch, asked.gradient_accumulation_steps) * epochs
        found.append((epochs, batch, steps))
    epochs_, batches, steps_ = zip(*found, strict=True)
    return (min(epochs_), max(epochs_)), (min(batches), max(batches)), (min(steps_), max(steps_))


def _resources(
    spec: JobSpec,
    counted: Counted,
    tokens: Range,
    batch: tuple[int, int],
    steps: tuple[int, int],
    known: Known,
    basis: Basis,
) -> tuple[Range | None, Range | None, Basis]:
    """Seconds, bytes, and what they come from."""
    shape, dpo = known.shape, spec.method.type == "dpo"
    longest = _longest(spec, counted)
    parameters = shape.parameters if shape else 0
    if (measured := speed.by_runs(known.runs, known.base, parameters, tokens)) is not None:
        seconds, said, runs = measured[0], "runs", measured[1]
    elif shape is not None:
        ends = (float(steps[0]), float(steps[1]))
        seconds = speed.by_rule(shape, spec.technique, known.device, tokens, ends, dpo=dpo)
        said, runs = "rule", 0
    else:
        seconds, said, runs = None, None, 0
    if (kept := speed.memory_by_runs(known.runs, known.base, longest)) is not None:
        bytes_, why = kept[0], "runs"
    elif shape is not None:
        share = min(1.0, counted.trained[1] / max(1.0, counted.tokens[0]))
        bytes_ = memory.peak(
            shape,
            spec.technique,
            spec.lora,
            known.device,
            longest,
            step=_step(spec, counted, batch),
            trained_share=share,
            dpo=dpo,
            packing=spec.hyperparameters.packing,
            cut=_cut(spec, counted, known),
        )
        why = "rule"
    else:
        bytes_, why = None, None
    return seconds, bytes_, basis.model_copy(update={"seconds": said, "memory": why, "runs": runs})


def _longest(spec: JobSpec, counted: Counted) -> Range:
    limit = spec.hyperparameters.max_length
    return min(counted.longest[0], limit), min(counted.longest[1], limit)


def _cut(spec: JobSpec, counted: Counted, known: Known) -> Fit | None:
    """How our loop will cut the training for the memory there is; None where that cannot be told yet."""
    if known.cut is not None or known.shape is None or spec.execution.backend not in ("auto", "own"):
        return known.cut
    room = devices.room_of_job(spec.execution) or devices.room_here()
    if room.bytes is None or room.kind != known.device.kind:
        return None
    dpo, packing = spec.method.type == "dpo", spec.hyperparameters.packing
    longest = _longest(spec, counted)[1]
    load = memory.Load(known.shape, spec.technique, spec.lora, known.device, longest, dpo, packing)
    return memory.fit(load, room.bytes)


def _step(spec: JobSpec, counted: Counted, batch: tuple[int, int]) -> Range:
    """Tokens of an optimiser step: of examples of mean length at least, of the longest ones at most."""
    many = spec.hyperparameters.gradient_accumulation_steps
    mean = counted.tokens[0] / max(1.0, counted.examples[1])
    return min(batch[0] * many, counted.examples[0]) * mean, batch[1] * many * counted.longest[1]


def _where(device: Device) -> Where:
    return Where(kind=device.kind, name=device.name, count=device.count, memory=device.memory)
