"""Answers in the making, a token at a time, many in one batch: prompts are read, answers join, go on side by side, and leave.

Each answer has its own adapters, its own sampling and its own end; what it says does not depend on who else is there (in
float32 to the token). Knows models and text, no HTTP, no queue: whoever calls decides when, and may simply stop calling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import DynamicCache

from finetune.inference import rows
from finetune.inference.model import LoadedBase
from finetune.inference.sampling import Sampling, choose, generator
from finetune.inference.stacked import Mix
from finetune.inference.text import TextStream

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What is new in one answer: text to show, and why it ended if it did."""

    index: int
    text: str
    reason: Reason | None = None


class Answer:
    """One answer: how its tokens are chosen, and what of its text was shown.

    Args:
        index: From 0, of the answers to one prompt.
        sampling: How tokens are chosen.
        limit: Tokens it may have.
        ends: Ids that end it and are not part of it.
        decode: Ids to text.
        stops: Texts that end it and are not part of it.
    """

    def __init__(
        self,
        index: int,
        sampling: Sampling,
        *,
        limit: int,
        ends: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
    ) -> None:
        self.index, self.tokens, self.last = index, 0, 0
        self._sampling, self._limit, self._ends = sampling, limit, ends
        self._text, self._source = TextStream(decode, stops), generator(sampling, index)
        self._chosen: Counter[int] = Counter()

    def extend(self, scores: torch.Tensor) -> Piece:
        """Choose the next token.

        Args:
            scores: float, shape (vocabulary,).
        """
        self.last = token = choose(scores, self._sampling, self._chosen, self._source)
        self._chosen[token] += 1
        self.tokens += 1
        if token in self._ends:
            return Piece(self.index, self._text.finish(), "stop")
        shown = self._text.push(token)
        if self._text.stopped:
            return Piece(self.index, shown, "stop")
        if self.tokens < self._limit:
            return Piece(self.index, shown)
        rest = self._text.finish()
        return Piece(self.index, shown + rest, "stop" if self._text.stopped else "length")


@dataclass(eq=False)
class Row:
    """One answer's place in a batch.

    Attributes:
        answer: Its last token is not yet read.
        mix: The adapters it is made with.
        length: Tokens read.
        owner: Whose it is; not looked at here.
    """

    answer: Answer
    mix: Mix
    length: int
    owner: Any = None


@dataclass(eq=False)
class Reading:
    """A prompt that is being read.

    Attributes:
        ids: The prompt.
        mix: The adapters it is read with.
        answers: To be begun when it is read.
        owner: Whose it is; not looked at here.
        cache: Of what is read; a prompt that is read in one go gets none.
        done: Tokens read.
    """

    ids: Sequence[int]
    mix: Mix
    answers: list[Answer]
    owner: Any = None
    cache: DynamicCache | None = None
    done: int = 0

    @property
    def left(self) -> int:
        """Tokens still to be read."""
        return len(self.ids) - self.done


def read_part(base: LoadedBase, reading: Reading, most: int, in_use: Iterable[str] = ()) -> torch.Tensor:
    """Read the next tokens of a prompt.

    Returns:
        Scores of the token after them, shape (1, vocabulary).
    """
    reading.cache = reading.cache or DynamicCache(config=base.model.config)
    ids = torch.tensor([list(reading.ids[reading.done : reading.done + most])])
    scores = base.forward(ids, reading.cache, [reading.mix], in_use=in_use)
    reading.done += ids.shape[1]
    return scores


def read_together(
    base: LoadedBase, readings: Sequence[Reading], in_use: Iterable[str] = ()
) -> tuple[torch.Tensor, DynamicCache]:
    """Read whole prompts in one pass, none of them begun.

    Returns:
        Scores of the tokens after them, shape (prompts, vocabulary), and the cache with a row each.
    """
    cache, lengths = DynamicCache(config=base.model.config), [len(reading.ids) for reading in readings]
    wide = max(lengths)
    ids = torch.tensor([[0] * (wide - len(reading.ids)) + list(reading.ids) for reading in readings])
    scores = base.forward(ids, cache, [reading.mix for reading in readings], lengths=lengths, in_use=in_use)
    for reading in readings:
        reading.done = len(reading.ids)
    return scores, cache


@dataclass(eq=False)
class Batch:
    """Answers that go on together.

    Attributes:
        base: In memory.
        kind: The one adapter of all rows that cannot stand beside others; None for those that can.
        closed: Nobody joins any more.
    """

    base: LoadedBase
    kind: str | None = None
    closed: bool = False
    rows: list[Row] = field(default_factory=list)
    _cache: DynamicCache | None = None

    def takes(self, count: int, length: int, most: int) -> bool:
        """Whether `count` more rows of `length` tokens keep the batch within `most` tokens, padding counted."""
        longest = max([length, *(row.length for row in self.rows)])
        return not self.closed and (len(self.rows) + count) * longest <= most

    def begin(self, readings: Sequence[Reading], scores: torch.Tensor, cache: DynamicCache) -> list[tuple[Row, Piece]]:
        """Take in the answers to prompts that were read, and make the first token of each.

        Args:
            scores: Of that token, shape (prompts, vocabulary).
            cache: Of the prompts, a row each; the batch takes it over.
        """
        made, places, staying = [], [], []
        for place, (reading, mine) in enumerate(zip(readings, scores.float().cpu(), strict=True)):
            for answer in reading.answers:
                row = Row(answer, reading.mix, len(reading.ids), reading.owner)
                piece = answer.extend(mine)
                made.append((row, piece))
                if piece.reason is None:
                    places.append(place)
                    staying.append(row)
        if staying:
            rows.keep(cache, places, max(row.length for row in staying))
            if self._cache is None:
                self._cache = cache
            else:
                rows.join(self._cache, cache)
            self.rows += staying
        return made

    def step(self, in_use: Iterable[str] = ()) -> list[tuple[Row, Piece]]:
        """Make the next token of every answer; those that ended leave."""
        ids = torch.tensor([[row.answer.last] for row in self.rows])
        lengths = [row.length + 1 for row in self.rows]
        mixes = [row.mix for row in self.rows]
        scores = self.base.forward(ids, self._cache, mixes, lengths=lengths, in_use=in_use).float().cpu()
        made = []
        for row, mine in zip(self.rows, scores, strict=True):
            row.length += 1
            made.append((row, row.answer.extend(mine)))
        ended = {id(row) for row, piece in made if piece.reason is not None}
        self.leave(lambda row: id(row) in ended)
        return made

    def leave(self, gone: Callable[[Row], bool]) -> None:
        """Go on without some rows."""
        staying = [place for place, row in enumerate(self.rows) if not gone(row)]
        if len(staying) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in staying]
        if not self.rows:
            self._cache = None
        elif self._cache is not None:
            rows.keep(self._cache, staying, max(row.length for row in self.rows))
