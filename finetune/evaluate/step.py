"""EVALUATE: what the adapter (or the whole model) does to held-out examples, beside what the base does to them.

Reads evaluate.json, prepared/ (validation arrays, samples.jsonl), base and adapter; writes evaluation.json. Where there is
nothing held out and nothing asked, no model is loaded. Ends with `manifest_mismatch`, `unsupported_model` or `out_of_memory`.
"""

from __future__ import annotations

from pathlib import Path

from finetune.data.arrays import Examples
from finetune.progress import write_atomic, write_report
from finetune.steps import EvaluateStep, EvaluationResult


def run(step: EvaluateStep, inputs: dict[str, Path], out: Path) -> None:
    """Evaluate an adapter.

    Args:
        step: evaluate.json.
        inputs: `prepared`, `base`, `adapter`.
        out: Gets evaluation.json.
    """
    rows = len(Examples(inputs["prepared"], "validation"))
    if rows or step.evaluation.prompts:
        from finetune.evaluate.measure import measure  # brings torch

        result = measure(step.evaluation, inputs["prepared"], inputs["base"], inputs["adapter"])
    else:
        result = EvaluationResult(rows=0)
    write_atomic(out / "evaluation.json", result.text())
    write_report(out, "evaluate", sentence(result), result.model_dump(mode="json"))


def sentence(result: EvaluationResult) -> str:
    """What a user reads, such as "Evaluated on 48 held-out rows: loss 0.21 (base 2.93), token accuracy 0.95 (base 0.47)."."""
    if not result.rows and not result.samples:
        return "Nothing was held out: there is nothing to evaluate."
    pairs = (
        ("loss", result.loss, result.base_loss),
        ("token accuracy", result.token_accuracy, result.base_token_accuracy),
        ("exact match", result.exact_match, None),
        ("contains", result.contains, None),
    )
    told = [
        f"{name} {value:.2f}" + (f" (base {base:.2f})" if base is not None else "")
        for name, value, base in pairs
        if value is not None
    ]
    own = sum(sample.wanted is None for sample in result.samples)
    parts = [f"{result.rows:,} held-out rows: {', '.join(told)}" if told else f"{result.rows:,} held-out rows"]
    return f"Evaluated on {parts[0]}" + (f"; {own} prompts answered" if own else "") + "."
