"""Whether a training forgot: how likely the answers to general questions are after it, and were before.

The questions come with LlamaFlow (general.toml) and have nothing to do with what is trained. Short, so that they cost little.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.encode import Example
from finetune.data.tokenizer import TextTokenizer
from finetune.evaluate.answers import ask
from finetune.evaluate.heldout import by_row
from finetune.evaluate.scores import Rows
from finetune.steps import Forgetting

GENERAL = Path(__file__).with_name("general.toml")


def general() -> list[tuple[str, str]]:
    """Questions and answers."""
    rows = tomllib.loads(GENERAL.read_text(encoding="utf-8"))["general"]
    return [(row["question"], row["answer"]) for row in rows]


def check(
    model: Any, untrained: Callable[[], AbstractContextManager[Any]], tokenizer: TextTokenizer, pad_id: int, budget: int
) -> Forgetting:
    """Score the answers, by what was trained and by its base.

    Args:
        model: What was trained.
        untrained: Opens its base for a while.
        tokenizer: With the template in force.
        pad_id: Fills up shorter examples.
        budget: Padded tokens a micro-batch.
    """
    asked = general()
    examples = [_example(line, *row, tokenizer) for line, row in enumerate(asked, 1)]
    after = by_row(model, examples, pad_id, budget)["loss"]
    with untrained() as base:
        before = by_row(base, examples, pad_id, budget)["loss"]
    return compared(after, before, [question for question, _ in asked])


def compared(after: Rows, before: Rows, questions: list[str]) -> Forgetting:
    """What changed."""
    drifts = (after.totals - before.totals) / np.maximum(after.weights, 1)
    worst = int(drifts.argmax())
    return Forgetting(
        prompts=len(questions), loss=after.value, base_loss=before.value, drift=after.value - before.value,
        worst=questions[worst], worst_drift=float(drifts[worst]),
    )  # fmt: skip


def _example(line: int, question: str, answer: str, tokenizer: TextTokenizer) -> Example:
    asked, said = ask(question, tokenizer).ids, tokenizer.ids(answer)
    tokens = np.array([*asked, *said], dtype=np.int32)
    return Example(line, tokens, np.arange(len(tokens)) >= max(1, len(asked)))
