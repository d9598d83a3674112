"""Which of several adapters a question belongs to: the one whose training questions lie nearest to it.

Questions are compared as the base alone sees them (mean of its last hidden states), each less the mean over the adapters,
by the cosine (measured: docs/serving.md). Beside an adapter lies a file of such vectors (`peft_folder.VECTORS`); no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune.exit_codes import StepError

TENSOR = "questions"
LONGEST = 128
"""Tokens of a question that are looked at, the last ones."""
MAX_QUESTIONS = 4096
MAX_WIDTH = 1 << 16


@dataclass(frozen=True)
class Choice:
    """Where a question goes.

    Attributes:
        index: Of the adapter; None: to none of them.
        scores: Of each adapter: cosine to the nearest of its questions, -1 to 1.
    """

    index: int | None
    scores: tuple[float, ...]


class Router:
    """The questions of several adapters.

    Args:
        vectors: Of each adapter, as `read` gives them; all of one width.
    """

    def __init__(self, vectors: Sequence[torch.Tensor]) -> None:
        self._vectors = vectors
        self._middle = torch.stack([one.mean(0) for one in vectors]).mean(0)

    def choose(self, question: torch.Tensor, threshold: float) -> Choice:
        """The adapter of a question.

        Args:
            question: Its vector, float32, shape (width,).
            threshold: A score below which no adapter is chosen.
        """
        mine = torch.nn.functional.normalize(question - self._middle, dim=0)
        scores = tuple(float((near @ mine).max()) for near in self._near)
        best = max(range(len(scores)), key=lambda index: scores[index])
        return Choice(best if scores[best] >= threshold else None, scores)

    @cached_property
    def _near(self) -> list[torch.Tensor]:
        return [torch.nn.functional.normalize(one - self._middle, dim=1) for one in self._vectors]


def vector(states: torch.Tensor) -> torch.Tensor:
    """A question's vector of the base's last hidden states, shape (tokens, width): shape (width,)."""
    return states.float().mean(0)


def write(path: Path, vectors: torch.Tensor) -> None:
    """Keep vectors, shape (questions, width), in half precision."""
    save_file({TENSOR: vectors.half().contiguous().cpu()}, path)


def read(path: Path) -> torch.Tensor:
    """The vectors of a file: float32, shape (questions, width).

    Raises:
        StepError: `manifest_mismatch`: it holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice(TENSOR).get_shape()
            if len(shape) != 2 or not 0 < shape[0] <= MAX_QUESTIONS or not 0 < shape[1] <= MAX_WIDTH:
                raise ValueError(f"its shape is {shape}")
            found: torch.Tensor = file.get_tensor(TENSOR).float()
    except (SafetensorError, ValueError, OSError) as problem:
        message = f"The question vectors of an adapter cannot be read: {problem}."
        raise StepError("manifest_mismatch", message, param="model") from problem
    if not torch.isfinite(found).all():
        raise StepError("manifest_mismatch", "The question vectors of an adapter are no numbers.", param="model")
    return found
