"""What the lines of progress.jsonl tell about a training that may have been interrupted and taken up again.

A training that goes on from a checkpoint writes the steps after it once more: the last line of a step counts. Pure
functions; no files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

COLUMNS = (
    "step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy", "learning_rate", "grad_norm",
    "tokens", "seconds",
)  # fmt: skip
PREFERENCES = ("rewards_margin", "rewards_accuracy", "rewards_chosen", "rewards_rejected")
"""Columns more where preferences were trained."""

Line = dict[str, Any]


def lineage(lines: Iterable[Line]) -> list[Line]:
    """The step and evaluation lines that led to the last one, in order: what a later attempt redid is left out.

    Args:
        lines: All lines, as written.
    """
    kept: list[Line] = []
    for line in lines:
        if line.get("event") == "start":
            kept = [old for old in kept if old["step"] <= (line.get("resumed_from") or 0)]
        elif line.get("event") in ("step", "evaluation") and isinstance(line.get("step"), int):
            kept.append(line)
    return kept


def metrics_csv(lines: Iterable[Line]) -> str:
    """metrics.csv: one row a step, the validation's columns filled where there was one."""
    rows: dict[int, Line] = {}
    for line in lineage(lines):
        row = rows.setdefault(line["step"], {})
        row.update({name: value for name, value in line.items() if name not in PREFERENCES or line["event"] == "step"})
    columns = COLUMNS + (PREFERENCES if any(PREFERENCES[0] in row for row in rows.values()) else ())
    table = [_row(rows[step], columns) for step in sorted(rows) if "loss" in rows[step]]
    return "\n".join([",".join(columns), *(",".join(row) for row in table)]) + "\n"


def spent(lines: Iterable[Line]) -> tuple[float, float]:
    """Seconds and CPU seconds of all attempts so far, those whose steps were lost among them."""
    seconds = cpu = 0.0
    for line in lines:
        if line.get("event") in ("step", "checkpoint", "evaluation"):
            seconds = max(seconds, line.get("seconds") or 0.0)
            cpu = max(cpu, line.get("cpu_seconds") or 0.0)
    return seconds, cpu


def last_evaluation(lines: Iterable[Line]) -> tuple[float | None, float | None]:
    """Loss and token accuracy of the newest validation of the lineage."""
    found = [line for line in lineage(lines) if line["event"] == "evaluation"]
    return (found[-1].get("valid_loss"), found[-1].get("valid_mean_token_accuracy")) if found else (None, None)


def last_step(lines: Iterable[Line]) -> tuple[float | None, float | None]:
    """Loss and token accuracy of the newest step of the lineage."""
    found = [line for line in lineage(lines) if line["event"] == "step"]
    return (found[-1].get("loss"), found[-1].get("train_accuracy")) if found else (None, None)


def _row(line: Line, columns: tuple[str, ...]) -> list[str]:
    values = {**line, "train_loss": line.get("loss")}
    return ["" if values.get(name) is None else str(values[name]) for name in columns]
