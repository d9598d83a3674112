"""Answers to one prompt, a token at a time: the prompt is read once, then all answers go on side by side.

`step()` makes one token of every answer that is not finished and says what can be shown. Knows models and text, no HTTP, no
queue: whoever calls `step` decides when, and may simply stop calling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import DynamicCache

from finetune.inference.model import LoadedBase
from finetune.inference.sampling import Sampling, choose, generator
from finetune.inference.text import TextStream

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What is new in one answer: text to show, and why it ended if it did."""

    index: int
    text: str
    reason: Reason | None = None


@dataclass
class _Answer:
    index: int
    text: TextStream
    source: torch.Generator
    chosen: Counter[int] = field(default_factory=Counter)
    last: int = 0


class Generation:
    """The answers to one prompt.

    Args:
        base: In memory, with the right adapter in force at every `step`.
        prompt: Ids; not empty.
        sampling: How tokens are chosen.
        count: Answers.
        limit: Tokens an answer may have.
        ends: Ids that end an answer and are not part of it.
        decode: Ids to text.
        stops: Texts that end an answer and are not part of it.
    """

    def __init__(
        self,
        base: LoadedBase,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        count: int,
        limit: int,
        ends: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
    ) -> None:
        self._base, self._prompt, self._sampling = base, list(prompt), sampling
        self._limit, self._ends = limit, ends
        self._open = [_Answer(index, TextStream(decode, stops), generator(sampling, index)) for index in range(count)]
        self._cache = DynamicCache(config=base.model.config)
        self._made = 0
        self.tokens = 0
        """Tokens made so far, over all answers, those that end them among them."""

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return not self._open

    def step(self) -> list[Piece]:
        """Make the next token of every open answer; the first call also reads the prompt."""
        scores = self._scores()
        self._made += 1
        pieces: list[Piece] = []
        staying: list[int] = []
        for row, answer in enumerate(self._open):
            piece = self._extend(answer, scores[row])
            if piece.reason is None:
                staying.append(row)
            if piece.text or piece.reason:
                pieces.append(piece)
        self._keep(staying)
        return pieces

    def _scores(self) -> torch.Tensor:
        if self._made:
            return self._base.forward(torch.tensor([[answer.last] for answer in self._open]), self._cache)
        scores = self._base.forward(torch.tensor([self._prompt]), self._cache)
        if len(self._open) > 1:
            self._cache.batch_repeat_interleave(len(self._open))
        return scores.expand(len(self._open), -1)

    def _extend(self, answer: _Answer, scores: torch.Tensor) -> Piece:
        token = choose(scores, self._sampling, answer.chosen, answer.source)
        answer.chosen[token] += 1
        answer.last = token
        self.tokens += 1
        if token in self._ends:
            return Piece(answer.index, answer.text.finish(), "stop")
        shown = answer.text.push(token)
        if answer.text.stopped:
            return Piece(answer.index, shown, "stop")
        if self._made >= self._limit:
            return self._cut(answer, shown)
        return Piece(answer.index, shown)

    def _cut(self, answer: _Answer, shown: str) -> Piece:
        rest = answer.text.finish()
        return Piece(answer.index, shown + rest, "stop" if answer.text.stopped else "length")

    def _keep(self, rows: list[int]) -> None:
        """Go on with these answers only."""
        if len(rows) < len(self._open):
            self._open = [self._open[row] for row in rows]
            if rows:
                self._cache.batch_select_indices(torch.tensor(rows, device=self._base.device))
