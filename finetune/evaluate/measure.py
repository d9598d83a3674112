"""The part of EVALUATE that needs the model: what was trained, its base, and the version it is compared with, on the same rows.

An adapter and its base are in memory once, the adapter switched off for the base's turn; a whole model stands beside its base.
The version compared with comes after them, on the base loaded anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.config import Evaluation
from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer, load
from finetune.evaluate import forgetting, gate, rewards
from finetune.evaluate.answers import Question, answer, ask, read_questions
from finetune.evaluate.heldout import by_row
from finetune.evaluate.scores import OF_ANSWERS, OF_TOKENS, Rows
from finetune.model import loading
from finetune.model.product import kind_of
from finetune.steps import EvaluationResult, Parent
from finetune.train.batches import CPU_TOKENS, GPU_TOKENS

SHOWN = 8
"""Held-out questions shown with both answers."""
SCORED = 1_000
"""Held-out questions answered at most, where a metric needs answers."""
PROMPT_TOKENS = 128
"""Tokens an answer to one of evaluation.prompts gets."""

Untrained = Callable[[], AbstractContextManager[Any]]


def measure(
    asked: Evaluation,
    seed: int,
    prepared: Path,
    base: Path,
    product: Path,
    compared: Path | None = None,
    version: Parent | None = None,
) -> EvaluationResult:
    """Compute what was asked.

    Args:
        asked: Metrics, prompts and the gate.
        seed: Of the gate's bootstrap.
        prepared: Validation arrays, samples.jsonl, the template in force.
        base: The base's folder.
        product: The adapter's folder, or that of a whole model.
        compared: The folder of the promoted version, for a gate.
        version: Which one that is.
    """
    loading.use_threads()
    where = loading.device()
    tokenizer = load(base, (prepared / "chat_template.jinja").read_text(encoding="utf-8"))
    sheet = Sheet.of(asked, prepared, tokenizer, CPU_TOKENS if where.type == "cpu" else GPU_TOKENS)
    model, untrained = beside(base, product, where)
    candidate = sheet.scored(model)
    with untrained() as other:
        plain = sheet.scored(other, answers=asked.gate is not None)
    samples = _samples(asked, prepared, model, untrained, tokenizer)
    told: dict[str, Any] = {"rewards": rewards.of_pairs(model, untrained, prepared, sheet.pad_id, sheet.budget)}
    if asked.gate is not None and len(sheet.rows):
        told["forgetting"] = forgetting.check(model, untrained, tokenizer, sheet.pad_id, sheet.budget)
        del model, untrained, other
        current = None if compared is None else sheet.scored(beside(base, compared, where)[0])
        told["gate"] = gate.decide(asked.gate, candidate, plain, current, version, seed)
    scores: dict[str, float] = {
        name: rows.value for name, rows in candidate.items() if name in asked.metrics and len(rows)
    }
    scores |= {
        f"base_{name}": plain[name].value for name in OF_TOKENS if name in asked.metrics and len(plain.get(name, ()))
    }
    return EvaluationResult(rows=len(sheet.rows), samples=samples, **scores, **told)


@dataclass(frozen=True)
class Sheet:
    """What every model is scored on.

    Attributes:
        metrics: What is computed.
        rows: The held-out examples.
        questions: Those of them that are asked and answered, where a metric needs answers.
        tokenizer: With the template in force.
        pad_id: Fills up shorter examples.
        budget: Padded tokens a micro-batch.
    """

    metrics: frozenset[str]
    rows: Examples
    questions: list[Question]
    tokenizer: TextTokenizer
    pad_id: int
    budget: int

    @classmethod
    def of(cls, asked: Evaluation, prepared: Path, tokenizer: TextTokenizer, budget: int) -> Sheet:
        """The sheet of a job."""
        metrics = frozenset([*asked.metrics, *([asked.gate.metric] if asked.gate else [])])
        questions = read_questions(prepared / "samples.jsonl", tokenizer, SCORED) if metrics & set(OF_ANSWERS) else []
        pad_id = int(json.loads((prepared / "tokens.json").read_text(encoding="utf-8"))["pad_id"])
        return cls(metrics, Examples(prepared, "validation"), questions, tokenizer, pad_id, budget)

    def scored(self, model: Any, *, answers: bool = True) -> dict[str, Rows]:
        """Metric → its rows. answers: also those for which the questions must be answered."""
        found: dict[str, Rows] = {}
        if self.metrics & set(OF_TOKENS):
            found |= {
                name: rows
                for name, rows in by_row(model, self.rows, self.pad_id, self.budget).items()
                if name in self.metrics
            }
        if answers and (wished := self.metrics & set(OF_ANSWERS)):
            said = answer(model, self.tokenizer, self.questions)
            wanted = [question.wanted or "" for question in self.questions]
            found |= {name: OF_ANSWERS[name](wanted, said) for name in wished}
        return found


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


def _samples(
    asked: Evaluation, prepared: Path, model: Any, untrained: Untrained, tokenizer: TextTokenizer
) -> list[EvaluationResult.Sample]:
    """Answered questions to show."""
    shown = read_questions(prepared / "samples.jsonl", tokenizer, SHOWN)
    own = [ask(prompt, tokenizer) for prompt in asked.prompts]
    return _both(model, untrained, tokenizer, shown, None) + _both(model, untrained, tokenizer, own, PROMPT_TOKENS)


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
