"""The part of EVALUATE that needs the model: what was trained and its base, side by side.

An adapter and its base are in memory once, the adapter switched off for the base's turn; a whole model stands beside its base.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from finetune.config import Evaluation
from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer, load
from finetune.evaluate.answers import Question, answer, ask, contains, exact_match, read_questions
from finetune.evaluate.heldout import HeldOut, held_out
from finetune.model import loading
from finetune.model.product import kind_of
from finetune.steps import EvaluationResult
from finetune.train.batches import CPU_TOKENS, GPU_TOKENS

SHOWN = 8
"""Held-out questions answered by both; all of samples.jsonl are answered by the adapter if a metric needs them."""
PROMPT_TOKENS = 128
"""Tokens an answer to one of evaluation.prompts gets."""

Untrained = Callable[[], AbstractContextManager[Any]]


def measure(asked: Evaluation, prepared: Path, base: Path, adapter: Path) -> EvaluationResult:
    """Compute what was asked.

    Args:
        asked: Metrics and prompts.
        prepared: Validation arrays, samples.jsonl, the template in force.
        base: The base's folder.
        adapter: The adapter's folder, or that of a whole model.
    """
    loading.use_threads()
    where = loading.device()
    tokenizer = load(base, (prepared / "chat_template.jinja").read_text(encoding="utf-8"))
    model, untrained = beside(base, adapter, where)
    rows = Examples(prepared, "validation")
    budget = CPU_TOKENS if where.type == "cpu" else GPU_TOKENS
    tuned = untuned = None
    if {"loss", "token_accuracy"} & set(asked.metrics):
        pad_id = int(json.loads((prepared / "tokens.json").read_text(encoding="utf-8"))["pad_id"])
        tuned = held_out(model, rows, pad_id, budget)
        with untrained() as other:
            untuned = held_out(other, rows, pad_id, budget)
    samples, scores = _answers(asked, prepared, model, untrained, tokenizer)
    return EvaluationResult(rows=len(rows), samples=samples, **scores, **_told(asked, tuned, untuned))


def beside(base: Path, product: Path, where: torch.device) -> tuple[Any, Untrained]:
    """What was trained, and its base.

    Args:
        base: The base's folder.
        product: An adapter's folder, or that of a whole model.
        where: The device.
    Returns:
        The trained model, and what opens the base for a while.
    """
    kind = loading.precision(where)
    if kind_of(product) == "model":
        other = loading.load_base(base, where, kind)
        return loading.load_base(product, where, kind), lambda: nullcontext(other)
    model = loading.load_adapter(loading.load_base(base, where, kind), product)

    @contextmanager
    def switched_off() -> Iterator[Any]:
        with model.disable_adapter():
            yield model

    return model, switched_off


def _told(asked: Evaluation, tuned: HeldOut | None, untuned: HeldOut | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for prefix, score in (("", tuned), ("base_", untuned)):
        if score is not None and "loss" in asked.metrics:
            found[f"{prefix}loss"] = score.loss
        if score is not None and "token_accuracy" in asked.metrics:
            found[f"{prefix}token_accuracy"] = score.accuracy
    return found


def _answers(
    asked: Evaluation, prepared: Path, model: Any, untrained: Untrained, tokenizer: TextTokenizer
) -> tuple[list[EvaluationResult.Sample], dict[str, float]]:
    """Answered questions to show, and the metrics that are computed from answers."""
    metrics = {"exact_match": exact_match, "contains": contains}
    wished = [name for name in metrics if name in asked.metrics]
    shown = read_questions(prepared / "samples.jsonl", tokenizer, SHOWN)
    scored = read_questions(prepared / "samples.jsonl", tokenizer, 1_000) if wished else []
    own = [ask(prompt, tokenizer) for prompt in asked.prompts]
    found = _both(model, untrained, tokenizer, shown, None) + _both(model, untrained, tokenizer, own, PROMPT_TOKENS)
    if not scored:
        return found, {}
    answers = answer(model, tokenizer, scored)
    wanted = [question.wanted or "" for question in scored]
    return found, {name: metrics[name](wanted, answers) for name in wished}


def _both(
    model: Any, untrained: Untrained, tokenizer: TextTokenizer, questions: list[Question], limit: int | None
) -> list[EvaluationResult.Sample]:
    """What the trained model and its base answer."""
    if not questions:
        return []
    tuned = answer(model, tokenizer, questions, limit)
    with untrained() as other:
        untuned = answer(other, tokenizer, questions, limit)
    return [
        EvaluationResult.Sample(prompt=question.shown, wanted=question.wanted, base=before, answer=after)
        for question, before, after in zip(questions, untuned, tuned, strict=True)
    ]
