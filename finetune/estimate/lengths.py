"""How many tokens the rows of a sample make: by the base's tokenizer where it is at hand, else by their bytes.

by rule   2-6 bytes of text a token, and 2-24 tokens a message besides, and up to 48 a row: what templates put around
by runs   bytes a token as earlier runs on the same base had, messages included, a quarter more or less
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.config import Data
from finetune.data.formats import Errors, LineError
from finetune.data.row import Pair
from finetune.estimate.ranges import Range
from finetune.estimate.sample import HEAD_ONLY, Sample, text_bytes, trained_bytes, turns

BYTES_A_TOKEN: Range = (2.0, 6.0)
AROUND_MESSAGE: Range = (2.0, 24.0)
AROUND_ROW: Range = (0.0, 48.0)
LIKE_RUNS = 0.25

Found = tuple[str, list[LineError], int]


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows read that would be trained on.

    Attributes:
        kept: How many rows those are.
        tokens, trained: Sums over them.
        longest: Of one.
        uncertainty: How far the mean of other rows may be off, as a share.
        basis: tokenizer, runs or rule.
        untrained: Rows without a token that would be trained.
        problem: Code, lines and count of rows that the tokenizer's checks refuse.
    """

    kept: int
    tokens: Range
    trained: Range
    longest: Range
    uncertainty: float
    basis: str
    untrained: int = 0
    problem: Found | None = None


def by_bytes(sample: Sample, data: Data, measured: Sequence[float] = ()) -> Lengths:
    """Lengths without a tokenizer.

    Args:
        sample: The rows.
        data: Which of their texts are trained.
        measured: Bytes a token of earlier runs on the same base; empty if there are none.
    """
    low, high, learned_low, learned_high, longest = 0.0, 0.0, 0.0, 0.0, (0.0, 0.0)
    sizes = [text_bytes(item) for item in sample.items]
    for item, size in zip(sample.items, sizes, strict=True):
        learned = trained_bytes(item, data)
        if measured:
            bounds = size / max(measured) / (1 + LIKE_RUNS), size / min(measured) * (1 + LIKE_RUNS) + 1
        else:
            messages = turns(item)
            bounds = (
                size / BYTES_A_TOKEN[1] + AROUND_MESSAGE[0] * messages,
                size / BYTES_A_TOKEN[0] + AROUND_MESSAGE[1] * messages + AROUND_ROW[1],
            )
        share = learned / size if size else 1.0
        low, high = low + bounds[0], high + bounds[1]
        learned_low, learned_high = (
            learned_low + bounds[0] * share * 0.5,
            learned_high + min(bounds[1], bounds[1] * share * 2 + 8),
        )
        longest = max(longest[0], bounds[0]), max(longest[1], bounds[1])
    return Lengths(
        kept=len(sizes),
        tokens=(low, high),
        trained=(learned_low, learned_high),
        longest=longest,
        uncertainty=_uncertainty([float(size) for size in sizes]),
        basis="runs" if measured else "rule",
    )


def by_tokenizer(sample: Sample, data: Data, tokenizer: Any, limit: int) -> Lengths:
    """Exact lengths of the rows read, and what PREPARE_DATA would refuse in them.

    Args:
        sample: The rows.
        data: How they are trained.
        tokenizer: A `finetune.data.tokenizer.TextTokenizer`.
        limit: Tokens an example may have.
    """
    from finetune.data.encode import Refusal, encode  # brings numpy and tokenizers

    errors: dict[str, Errors] = {}
    kept: list[int] = []
    trained, untrained, longest = 0, 0, 0
    pairs = [item if isinstance(item, Pair) else None for item in sample.items]
    flat = [
        row for item in sample.items for row in ((item.chosen, item.rejected) if isinstance(item, Pair) else (item,))
    ]
    made = encode(flat, tokenizer, data.train_on)
    for pair in pairs:
        sides = [next(made) for _ in range(2 if pair is not None else 1)]
        lengths, learned, line = [], [], sides[0].line
        for side in sides:
            if isinstance(side, Refusal):
                errors.setdefault(side.code, Errors()).add(side.code, LineError(side.line, side.message))
                break
            size = len(side.tokens)
            longest = max(longest, size)
            lengths.append(min(size, limit))
            learned.append(int(side.mask[:limit].sum()))
            if size > limit and data.overlength == "fail":
                message = f"{size:,} tokens, where max_length is {limit:,}"
                errors.setdefault("overlength_examples", Errors()).add("overlength", LineError(line, message))
            if size > limit and data.overlength != "truncate":
                break
        else:
            if not all(learned):
                untrained += 1
                continue
            kept.append(sum(lengths))
            trained += sum(learned)
    order = ("invalid_file_format", "special_tokens_in_text", "overlength_examples")
    first = next((code for code in order if code in errors), None)
    return Lengths(
        kept=len(kept),
        tokens=(float(sum(kept)), float(sum(kept))),
        trained=(float(trained), float(trained)),
        longest=(float(min(longest, limit)),) * 2,
        uncertainty=_uncertainty([float(size) for size in kept]),
        basis="tokenizer",
        untrained=untrained,
        problem=None if first is None else (first, errors[first].chosen(), errors[first].count),
    )


def _uncertainty(sizes: list[float]) -> float:
    if len(sizes) < 2 or not (mean := statistics.fmean(sizes)):
        return 0.5
    return HEAD_ONLY + 2 * statistics.stdev(sizes) / mean / math.sqrt(len(sizes))
