"""The tokens of one file of a dataset, kept in the cache by all that decides them: content, tokenizer, template, settings, code.

Nothing of a job's limits is in them: a job with another max_length, or one that gets a file more, tokenises nothing again.
Files are independent of each other, so several are made at once (`parallel`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.config import Data
from finetune.data import reading
from finetune.data.arrays import REJECTED, Side, Split, Writer
from finetune.data.columns import Block
from finetune.data.encode import Example, Refusal, encode
from finetune.data.formats import Errors, LineError, Reader
from finetune.data.pairs import encode_pairs
from finetune.data.problems import Code, File
from finetune.data.row import Pair, Row
from finetune.data.sealed import code_sha256, intact, place, seal
from finetune.data.tokenizer import TextTokenizer
from finetune.estimate.sample import text_bytes
from finetune.model.cache import address, locked, making, touch

BATCH_ROWS = 256
BATCH_CHARACTERS = 1 << 20
"""Rows that are tokenised together: at most so many, and at most so much text (or one row)."""

NAME: Split = "train"
"""What the arrays of a file are called, whichever split it is of."""

FOUND = "found.json"


@dataclass(frozen=True)
class Task:
    """A file to be tokenised.

    Attributes:
        file: It.
        data: How its rows are read; the format is told.
        base: Folder of the tokenizer, and `template` a chat template in place of its own.
        cache: The cache's folder.
        target: Gets the arrays.
    """

    file: File
    data: Data
    base: Path
    template: str | None
    cache: Path
    target: Path

    def key(self, tokenizer: TextTokenizer) -> str:
        """Its name in the cache."""
        data = self.data.model_dump(include={"format", "text_template", "train_on"})
        return address("tokens", code_sha256(), tokenizer.sha256, self.file.sha256, json.dumps(data, sort_keys=True))


@dataclass
class Shard:
    """A tokenised file: its arrays lie in `folder`.

    Attributes:
        folder: As `Task.target`.
        rows: Rows read, with those that cannot be tokenised.
        bytes: Of their texts, in UTF-8.
        tokens: Made of them.
        problems: What is wrong with rows.
        cached: Whether the tokens were there before.
    """

    folder: Path
    rows: int = 0
    bytes: int = 0
    tokens: int = 0
    problems: dict[Code, Errors] = field(default_factory=dict)
    cached: bool = False

    def add(self, code: Code, kind: str, line: int, message: str) -> None:
        """Take one problem."""
        self.problems.setdefault(code, Errors()).add(kind, LineError(line, message))


def sides(split: Split, data: Data) -> tuple[Side, ...]:
    """The names of a split's arrays: one, or chosen and rejected."""
    return (split, REJECTED[split]) if data.format == "preference" else (split,)


def make(task: Task, tokenizer: TextTokenizer) -> Shard:
    """Have the tokens of a file in `task.target`: from the cache, or tokenised and put there.

    A file with rows that cannot be tokenised is not kept, for its job fails.
    """
    key = task.key(tokenizer)
    kept = task.cache / "tokens" / key
    with locked(task.cache, f"tokens {key}"):
        if intact(kept):
            place(kept, task.target)
            touch(kept)
            return Shard(task.target, **json.loads((task.target / FOUND).read_text(encoding="utf-8")), cached=True)
        task.target.mkdir(parents=True, exist_ok=True)
        shard = tokenise(task.file, task.data, tokenizer, task.target)
        if not shard.problems:
            counted = {"rows": shard.rows, "bytes": shard.bytes, "tokens": shard.tokens}
            (task.target / FOUND).write_text(json.dumps(counted) + "\n", encoding="utf-8")
            with making(kept) as folder:
                place(task.target, folder)
                seal(folder)
        return shard


def tokenise(file: File, data: Data, tokenizer: TextTokenizer, folder: Path) -> Shard:
    """Write the arrays of one file to `folder`, every row looked at. Holds a batch of rows at a time."""
    shard = Shard(folder)
    with ExitStack() as opened:
        stream = opened.enter_context(file.path.open("rb"))
        writers = [opened.enter_context(Writer(folder, side)) for side in sides(NAME, data)]
        for batch in _batches(_good(Reader(data).rows(reading.Source(stream)), shard)):
            encoded: list[tuple[Example, ...]] = []
            for item in _encoded(batch, tokenizer, data):
                if isinstance(item, Refusal):
                    shard.add(item.code, item.code, item.line, item.message)
                else:
                    encoded.append(item)
            if encoded:
                for writer, examples in zip(writers, zip(*encoded, strict=True), strict=True):
                    block = _joined(examples)
                    shard.tokens += len(block.tokens)
                    writer.add(block)
    return shard


def _good(rows: Iterator[Row | Pair | reading.Flaw], shard: Shard) -> Iterator[Row | Pair]:
    for row in rows:
        if isinstance(row, reading.Flaw):
            shard.add("invalid_file_format", row.kind, row.line, row.message)
        else:
            shard.rows += 1
            shard.bytes += text_bytes(row)
            yield row


def _batches(rows: Iterable[Row | Pair]) -> Iterator[list[Row | Pair]]:
    batch: list[Row | Pair] = []
    size = 0
    for row in rows:
        length = sum(map(len, row.texts()))
        if batch and (len(batch) == BATCH_ROWS or size + length > BATCH_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch


def _encoded(rows: list[Row | Pair], tokenizer: TextTokenizer, data: Data) -> Iterator[tuple[Example, ...] | Refusal]:
    """Each row's example, or the two of a pair."""
    pairs = encode_pairs((row for row in rows if isinstance(row, Pair)), tokenizer, data.train_on)
    for pair in pairs:
        yield pair if isinstance(pair, Refusal) else (pair.chosen, pair.rejected)
    for item in encode((row for row in rows if isinstance(row, Row)), tokenizer, data.train_on):
        yield item if isinstance(item, Refusal) else (item,)


def _joined(examples: Iterable[Example]) -> Block:
    given = list(examples)
    return Block(
        tokens=np.concatenate([example.tokens for example in given]),
        mask=np.concatenate([example.mask for example in given]),
        lengths=np.array([len(example.tokens) for example in given], dtype=np.int64),
        lines=np.array([example.line for example in given], dtype=np.int64),
        files=np.zeros(len(given), dtype=np.int32),
    )
