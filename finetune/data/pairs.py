"""Preference pairs to tokens and masks: both sides go the way of any row, and a pair is refused if either is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from finetune.data.arrays import EncodedPair
from finetune.data.encode import Refusal, encode
from finetune.data.row import Pair
from finetune.data.tokenizer import TextTokenizer


def encode_pairs(
    pairs: Iterable[Pair], tokenizer: TextTokenizer, train_on: Literal["assistant", "all", "last"]
) -> Iterator[EncodedPair | Refusal]:
    """The pairs in order, the question never trained.

    Args:
        pairs: Read in batches.
        tokenizer: The base's.
        train_on: `last` trains the last message of an answer of several; `all` is as `assistant`.
    """
    sides = (side for pair in pairs for side in (pair.chosen, pair.rejected))
    encoded = encode(sides, tokenizer, "assistant" if train_on == "all" else train_on)
    for chosen in encoded:
        rejected = next(encoded)
        if isinstance(chosen, Refusal):
            yield chosen
        elif isinstance(rejected, Refusal):
            yield rejected
        else:
            yield EncodedPair(chosen, rejected)
