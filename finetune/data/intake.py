"""Reading a dataset into arrays, with the checks that need the tokenizer: special tokens, length, something to learn.

Every row is looked at before anything is refused, so that a user sees all that is wrong at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.config import MIN_EXAMPLES, Data
from finetune.data import reading
from finetune.data.arrays import REJECTED, Examples, Side, Split, Writer, digest, divide
from finetune.data.encode import Example, Refusal, encode
from finetune.data.formats import MAX_LINES_NAMED, Reader, too_few
from finetune.data.pairs import encode_pairs
from finetune.data.problems import PARAMS, File, Problems
from finetune.data.row import Pair, Row
from finetune.data.tokenizer import TextTokenizer
from finetune.exit_codes import BY_NAME, StepError


@dataclass
class Taken:
    """One split as it was taken in.

    Attributes:
        split: Its name.
        origins: The file each example is from.
        rows: Rows read, with those left out.
        dropped: Rows left out for their length.
        truncated: Rows cut at the limit.
        untrained: Rows left out because no token of them would be trained; `untrained_lines` are the first of them.
    """

    split: Split
    origins: list[File] = field(default_factory=list)
    rows: int = 0
    dropped: int = 0
    truncated: int = 0
    untrained: int = 0
    untrained_lines: list[int] = field(default_factory=list)


def take_in(
    data: Data, seed: int, limit: int, tokenizer: TextTokenizer, files: list[File], folder: Path
) -> tuple[Taken, Taken]:
    """Write the arrays of both splits to `folder`.

    Args:
        data: How the rows are read.
        seed: Decides which rows are held out, if no validation file is there and some are to be.
        limit: Tokens an example may have.
        tokenizer: Of the base.
        files: The dataset; lines are counted in each.
        folder: Gets `train.*.npy` and `validation.*.npy`.
    Returns:
        Training and validation split.
    Raises:
        StepError: Rows that cannot be used, too few of them, too long ones, or nothing to train.
    """
    problems = Problems()
    train, validation = (
        _read(split, data, limit, tokenizer, files, folder, problems) for split in ("train", "validation")
    )
    problems.settle()
    _require(train, files, limit, MIN_EXAMPLES)
    if any(file.split == "validation" for file in files):
        _require(validation, files, limit, 1)
    elif data.validation_split:
        held_out = hold_out(Examples(folder, "train"), data.validation_split, seed)
        divide(folder, held_out)
        apart = set(held_out)
        validation.origins = [train.origins[index] for index in held_out]
        train.origins = [origin for index, origin in enumerate(train.origins) if index not in apart]
    return train, validation


def hold_out(examples: Examples, share: float, seed: int) -> list[int]:
    """Which examples to keep for validation: `share` of them, at least one and never all, in order.

    Chosen by a hash of seed and content, so that equal examples stand side by side in the order and are not torn apart
    except at its one end; the choice is the same on every machine.

    Args:
        examples: At least two.
        share: In (0, 1).
        seed: Any.
    """
    count = min(len(examples) - 1, max(1, round(len(examples) * share)))
    order = sorted(
        range(len(examples)), key=lambda i: (hashlib.sha256(b"%d:" % seed + digest(examples[i])).digest(), i)
    )
    return sorted(order[:count])


def _read(
    split: Split, data: Data, limit: int, tokenizer: TextTokenizer, files: list[File], folder: Path, problems: Problems
) -> Taken:
    taken = Taken(split)
    reader = Reader(data)
    sides: tuple[Side, ...] = (split, REJECTED[split]) if data.format == "preference" else (split,)
    with ExitStack() as open_files:
        writers = [open_files.enter_context(Writer(folder, side)) for side in sides]
        for file in (file for file in files if file.split == split):
            with file.path.open("rb") as stream:
                rows = _rows(reader, reading.Source(stream), file, taken, problems)
                for item in _encoded(rows, tokenizer, data):
                    if isinstance(item, Refusal):
                        problems.add(item.code, file, item.code, item.line, item.message)
                    elif fitting := _fit(item, data, limit, file, taken, problems):
                        for writer, example in zip(writers, fitting, strict=True):
                            writer.add(example)
                        taken.origins.append(file)
    return taken


def _encoded(
    rows: Iterator[Row | Pair], tokenizer: TextTokenizer, data: Data
) -> Iterator[tuple[Example, ...] | Refusal]:
    """Each row's example, or the two of a pair."""
    if data.format == "preference":
        for pair in encode_pairs((row for row in rows if isinstance(row, Pair)), tokenizer, data.train_on):
            yield pair if isinstance(pair, Refusal) else (pair.chosen, pair.rejected)
        return
    for item in encode((row for row in rows if isinstance(row, Row)), tokenizer, data.train_on):
        yield item if isinstance(item, Refusal) else (item,)


def _rows(reader: Reader, source: reading.Source, file: File, taken: Taken, problems: Problems) -> Iterator[Row | Pair]:
    for row in reader.rows(source):
        if isinstance(row, reading.Flaw):
            problems.add("invalid_file_format", file, row.kind, row.line, row.message)
        else:
            taken.rows += 1
            yield row


def _fit(
    sides: tuple[Example, ...], data: Data, limit: int, file: File, taken: Taken, problems: Problems
) -> tuple[Example, ...]:
    """The example, or the two sides of a pair, within the limit; nothing if it is left out."""
    line, longest = sides[0].line, max(len(side.tokens) for side in sides)
    if longest > limit:
        if data.overlength == "fail":
            message = f"{longest:,} tokens, where max_length is {limit:,}"
            problems.add("overlength_examples", file, "overlength", line, message)
            return ()
        if data.overlength == "drop":
            taken.dropped += 1
            return ()
        taken.truncated += 1
        sides = tuple(Example(line, side.tokens[:limit], side.mask[:limit]) for side in sides)
    alike = len(sides) == 2 and np.array_equal(sides[0].tokens, sides[1].tokens)
    if alike or not all(side.mask.any() for side in sides):
        taken.untrained += 1
        if len(taken.untrained_lines) < MAX_LINES_NAMED:
            taken.untrained_lines.append(line)
        return ()
    return sides


def _require(taken: Taken, files: list[File], limit: int, minimum: int) -> None:
    """Refuse a split of which too little is left."""
    param = PARAMS[taken.split]
    name = ", ".join(file.uri for file in files if file.split == taken.split) or param
    kept = len(taken.origins)
    if taken.rows == 0:
        raise StepError("invalid_file_format", f"{name} is empty.", param=param)
    if taken.rows < minimum:
        raise too_few(name, taken.rows, param=param, minimum=minimum)
    if kept == 0 and taken.untrained:
        lines = ", ".join(map(str, taken.untrained_lines))
        told = f"{name}: no example has a token that would be trained (lines {lines}"
        told += ", …" if taken.untrained > len(taken.untrained_lines) else ""
        remedy = BY_NAME["no_trainable_tokens"].remedy
        raise StepError("no_trainable_tokens", f"{told}). {remedy}", param=param, lines=taken.untrained_lines)
    if kept == 0:
        told = f"{name}: every example is longer than max_length ({limit:,} tokens)."
        raise StepError("overlength_examples", f"{told} {BY_NAME['overlength_examples'].remedy}", param=param)
    if kept < minimum:
        left_out = f"{taken.dropped} longer than max_length and {taken.untrained} with nothing to train were left out"
        told = f"{name}: only {kept} of {taken.rows} examples can be used ({left_out}); at least {minimum} are needed."
        raise StepError("invalid_n_examples", told, param=param)
