"""The trainer's progress.jsonl lines as what a user reads: metrics in OpenAI's names, checkpoints, the job's progress.

Pure: lines in, notes out, and a small state between two readings, so that a worker that adopts a run repeats nothing.
At most one metrics note a second, by the trainer's own clock, and always the last one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

METRICS_SECONDS = 1.0
PREFERENCES = ("rewards_margin", "rewards_accuracy", "rewards_chosen", "rewards_rejected")
"""What is told besides where preferences are trained."""


@dataclass(frozen=True)
class Note:
    """One thing to record. kind: message, metrics, or checkpoint (a message with a row of its own)."""

    kind: str
    message: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Story:
    """What a batch of lines tells: notes in order, the job's progress as of the last line, and what to remember."""

    notes: list[Note]
    progress: dict[str, Any] | None
    state: dict[str, Any]


def tell(lines: Iterable[dict[str, Any]], state: dict[str, Any], *, over: bool = False) -> Story:
    """Turn lines into notes.

    Args:
        lines: Of progress.jsonl, in order.
        state: What the last call returned; {} at first.
        over: No more lines come: the metrics held back are told now.
    """
    memory = dict(state)
    notes: list[Note] = []
    progress: dict[str, Any] | None = None
    for line in lines:
        kind = line.get("event")
        if kind == "step":
            progress = _progress(line)
            notes += _metrics(line, memory)
        elif kind in _TOLD:
            notes += [*_flush(memory), _TOLD[kind](line)]
        elif kind == "end":
            notes += _flush(memory)
    return Story(notes + (_flush(memory) if over else []), progress, memory)


def _metrics(line: dict[str, Any], memory: dict[str, Any]) -> list[Note]:
    """The step's note, unless one was told less than a second before; then it waits in the memory."""
    told = memory.get("told")
    if told is not None and 0 <= float(line.get("time", 0)) - told < METRICS_SECONDS:
        memory["held"] = line
        return []
    memory.pop("held", None)
    memory["told"] = float(line.get("time", 0))
    return [_step(line)]


def _flush(memory: dict[str, Any]) -> list[Note]:
    held = memory.pop("held", None)
    if held is None:
        return []
    memory["told"] = float(held.get("time", 0))
    return [_step(held)]


def _step(line: dict[str, Any]) -> Note:
    loss = line.get("loss")
    said = f"training loss {loss:.2f}" if isinstance(loss, int | float) else "training loss is not a number"
    data = {"step": line.get("step"), "total_steps": line.get("total_steps"), "train_loss": loss}
    data["train_mean_token_accuracy"] = line.get("train_accuracy")
    names = ("epoch", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "eta_seconds", *PREFERENCES)
    return Note("metrics", f"Step {line.get('step')}/{line.get('total_steps')}: {said}", data | _some(line, names))


def _start(line: dict[str, Any]) -> Note:
    total, resumed = line.get("total_steps"), line.get("resumed_from")
    message = f"Training goes on from step {resumed} of {total}" if resumed else f"Training started: {total} steps"
    return Note("message", message, _some(line, ("total_steps", "resumed_from", "device", "precision")))


def _evaluation(line: dict[str, Any]) -> Note:
    loss = line.get("valid_loss")
    said = f"validation loss {loss:.2f}" if isinstance(loss, int | float) else "validated"
    names = ("step", "valid_loss", "valid_mean_token_accuracy", "samples", *PREFERENCES)
    return Note("metrics", f"Step {line.get('step')}: {said}", _some(line, names))


def _checkpoint(line: dict[str, Any]) -> Note:
    names = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
    return Note("checkpoint", f"Checkpoint saved at step {line.get('step')}", _some(line, names))


def _notice(line: dict[str, Any]) -> Note:
    return Note("message", str(line.get("message"))[:1000], _some(line, ("step",)))


_TOLD = {"notice": _notice, "start": _start, "evaluation": _evaluation, "checkpoint": _checkpoint}


def _progress(line: dict[str, Any]) -> dict[str, Any]:
    step, total = line.get("step"), line.get("total_steps")
    percent = round(100 * step / total, 1) if isinstance(step, int) and isinstance(total, int) and total > 0 else None
    return {
        "step": step,
        "total_steps": total,
        "percent": percent,
        "eta_seconds": line.get("eta_seconds"),
        "tokens_per_second": line.get("tokens_per_second"),
    }


def _some(line: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: line[name] for name in names if line.get(name) is not None}
