"""EVALUATE: what the adapter (or the whole model) does to held-out examples, beside what the base does to them.

Reads evaluate.json, prepared/ (validation arrays, samples.jsonl), base, adapter and, for a gate, compared/ (the promoted
version); writes evaluation.json. Where there is nothing held out and nothing asked, no model is loaded. Ends with `manifest_mismatch`, `unsupported_model` or `out_of_memory`.
"""

from __future__ import annotations

import json
from pathlib import Path

from finetune.data.arrays import Examples
from finetune.evaluate import gate
from finetune.progress import write_atomic, write_report
from finetune.steps import EvaluateStep, EvaluationResult, Forgetting, GateResult, Parent

FORGOTTEN = 0.5
"""Nats a token by which general answers may become less likely without a warning: a factor of 1.6."""


def run(step: EvaluateStep, inputs: dict[str, Path], out: Path) -> None:
    """Evaluate an adapter.

    Args:
        step: evaluate.json.
        inputs: `prepared`, `base`, `adapter`; `compared`, if the service knows of a version to compare with.
        out: Gets evaluation.json.
    """
    rows = len(Examples(inputs["prepared"], "validation"))
    compared, version = _compared(inputs.get("compared"))
    if rows or step.evaluation.prompts:
        from finetune.evaluate.measure import measure  # brings torch

        folders = (inputs["prepared"], inputs["base"], inputs["adapter"], compared)
        result = measure(step.evaluation, step.seed, *folders, version)
    else:
        result = EvaluationResult(rows=0)
    if step.evaluation.gate is not None and rows == 0:
        result = result.model_copy(update={"gate": gate.nothing_held_out(step.evaluation.gate, version)})
    write_atomic(out / "evaluation.json", result.text())
    told = [forgotten(result.forgetting)] if result.forgetting is not None else []
    warnings = [warning for warning in told if warning]
    data = result.model_dump(mode="json") | ({"warnings": warnings} if warnings else {})
    write_report(out, "evaluate", " ".join([sentence(result), *warnings]), data)


def _compared(folder: Path | None) -> tuple[Path | None, Parent | None]:
    """The folder of the version to compare with, and which it is; parent.json alone, empty, says that there is none."""
    if folder is None or (told := (folder / "parent.json").read_text(encoding="utf-8").strip()) == "{}":
        return None, None
    return folder, Parent.model_validate_json(told)


def forgotten(found: Forgetting) -> str:
    """A warning, if general answers became less likely than they should."""
    if found.drift <= FORGOTTEN:
        return ""
    return (
        f"It may have forgotten: answers to {found.prompts} general questions lost {found.drift:.2f} nats a token "
        f"({found.base_loss:.2f} to {found.loss:.2f}), most of all {json.dumps(found.worst, ensure_ascii=False)}."
    )


REWARDS = ("accuracy", "margin")
"""What is told of preferences; the file has all."""


def sentence(result: EvaluationResult) -> str:
    """What a user reads, such as "Evaluated on 48 held-out rows: loss 0.21 (base 2.93), token accuracy 0.95 (base 0.47)."."""
    if not result.rows and not result.samples:
        return "Nothing was held out: there is nothing to evaluate."
    pairs = (
        ("loss", result.loss, result.base_loss),
        ("token accuracy", result.token_accuracy, result.base_token_accuracy),
        ("exact match", result.exact_match, None),
        ("contains", result.contains, None),
        ("chrF", result.chrf, None),
        *((f"rewards {name}", value, None) for name, value in (result.rewards or {}).items() if name in REWARDS),
    )
    told = [
        f"{name} {value:.2f}" + (f" (base {base:.2f})" if base is not None else "")
        for name, value, base in pairs
        if value is not None
    ]
    own = sum(sample.wanted is None for sample in result.samples)
    parts = [f"{result.rows:,} held-out rows: {', '.join(told)}" if told else f"{result.rows:,} held-out rows"]
    gated = "" if result.gate is None else f" The gate: {result.gate.reason}{_between(result.gate)}."
    return f"Evaluated on {parts[0]}" + (f"; {own} prompts answered" if own else "") + "." + gated


def _between(found: GateResult) -> str:
    if found.interval is None:
        return ""
    other = "the base" if found.compared_with == "base" or found.current is None else found.current.id
    return f", against {other}; difference {found.difference:+.4g}, 95 % interval {found.interval[0]:+.4g} to {found.interval[1]:+.4g}"
