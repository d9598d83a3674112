"""An estimate as it is shown: on the command line, by the API, in events."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from finetune.estimate.ranges import Range, Whole


class Shown(BaseModel):
    """A part of the answer."""

    model_config = ConfigDict(frozen=True)


class Problem(Shown):
    """Why the job would fail: as `error` of a failed job, and the lines it is about."""

    code: str
    message: str
    param: str | None = None
    lines: list[int] = Field(default_factory=list)


class Where(Shown):
    """What was reckoned with."""

    kind: Literal["cpu", "gpu"]
    name: str | None = Field(None, description="Of the GPU, as asked for.")
    count: int = Field(description="GPUs, or processors.")
    memory: Literal["ram", "vram"] = Field(description="Which memory peak_memory_bytes is about.")


class Basis(Shown):
    """How far the numbers can be trusted, and why."""

    rows_read: int = Field(description="Rows looked at, at most 2,000 of each file given.")
    complete: bool = Field(description="Whether those are all; then counts are exact.")
    tokens: str = Field(description="tokenizer, runs or rule.")
    seconds: str | None = Field(description="runs or rule; null when nothing is known of the base's size.")
    memory: str | None = Field(description="runs or rule; null when nothing is known of the base's size.")
    runs: int = Field(0, description="Earlier runs that seconds come from.")


class Estimate(Shown):
    """What a job will take. Every range is [low, high], both included."""

    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    model: str
    technique: str
    device: Where
    examples: Whole | None = Field(None, description="Trained on; held-out ones apart.")
    validation_examples: Whole | None = None
    tokens: Whole | None = Field(None, description="Of one epoch, prompts included.")
    trained_tokens: Whole | None = Field(None, description="Of one epoch: those with loss.")
    longest: Whole | None = Field(None, description="Tokens of the longest example.")
    n_epochs: Whole | None = None
    batch_size: Whole | None = None
    total_steps: Whole | None = None
    peak_memory_bytes: Whole | None = Field(None, description="Of FINE_TUNE.")
    seconds: Range | None = Field(
        None, description="Of the training itself; download, evaluation and upload come on top."
    )
    cost: Range | None = Field(None, description="Of those seconds, by LLAMAFLOW_PRICES; null without a price.")
    currency: str | None = None
    basis: Basis
    warnings: list[str] = Field(default_factory=list)
    error: Problem | None = Field(None, description="Why the job would fail; then only what could be counted is told.")


def sentence(estimate: Estimate) -> str:
    """What a user reads, such as "Expected: 2 min 10 s to 9 min and 1.1 to 2.4 GB of memory on 2 processors, by 3 earlier runs"."""
    parts = []
    if estimate.seconds is not None:
        parts.append(f"{duration(estimate.seconds[0])} to {duration(estimate.seconds[1])} of training")
    if estimate.peak_memory_bytes is not None:
        low, high = (gigabytes(bound) for bound in estimate.peak_memory_bytes)
        parts.append(f"{low} to {high} GB of {'GPU ' if estimate.device.memory == 'vram' else ''}memory")
    if estimate.cost is not None:
        parts.append(f"{estimate.cost[0]:.2f} to {estimate.cost[1]:.2f} {estimate.currency}")
    if not parts:
        return "What the training takes cannot be said: the size of the base is not known"
    runs = estimate.basis.runs
    why = "by rule" if estimate.basis.seconds != "runs" else f"by {runs} earlier run{'s' if runs != 1 else ''}"
    return f"Expected: {', '.join(parts)}; {why}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest and minutes < 10 else "")
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes and hours < 10 else "")


def gigabytes(size: float) -> str:
    """Bytes as gigabytes of 10⁹."""
    return f"{size / 1e9:.1f}" if size < 20e9 else f"{size / 1e9:,.0f}"
