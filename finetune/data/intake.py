"""From the tokens of a dataset's files to its two splits, with the checks that need the limit: length, something to learn.

Every row is looked at before anything is refused, so that a user sees all that is wrong at once. Some millions of tokens are
held at a time.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.config import MIN_EXAMPLES, Data
from finetune.data import repeats
from finetune.data.arrays import Split, Writer
from finetune.data.columns import Block, Column, blocks
from finetune.data.formats import MAX_LINES_NAMED, too_few
from finetune.data.problems import PARAMS, File, Problems
from finetune.data.shards import NAME, Shard, sides
from finetune.exit_codes import BY_NAME, StepError


@dataclass
class Named:
    """Rows of one kind: how many, and the lines of the first of them."""

    rows: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, lines: npt.NDArray[np.int64]) -> None:
        """Take rows, in order."""
        self.rows += len(lines)
        self.lines += lines[: MAX_LINES_NAMED - len(self.lines)].tolist()


@dataclass
class Taken:
    """One split as it was taken in.

    Attributes:
        split: Its name.
        rows: Rows read, with those left out.
        kept: Examples written.
        dropped: Rows left out for their length.
        truncated: Rows cut at the limit.
        untrained: Rows left out because no token of them would be trained.
    """

    split: Split
    rows: int = 0
    kept: int = 0
    dropped: Named = field(default_factory=Named)
    truncated: Named = field(default_factory=Named)
    untrained: Named = field(default_factory=Named)


def take_in(
    data: Data, seed: int, limit: int, files: list[File], shards: list[Shard], folder: Path
) -> tuple[Taken, Taken]:
    """Write the arrays of both splits to `folder`, and the digests of their examples (`repeats`).

    Args:
        data: What is asked of the rows.
        seed: Decides which rows are held out, if no validation file is there and some are to be.
        limit: Tokens an example may have.
        files: The dataset; lines are counted in each.
        shards: Their tokens, in the same order.
        folder: Gets `train.*.npy` and `validation.*.npy`.
    Returns:
        Training and validation split.
    Raises:
        StepError: Rows that cannot be used, too few of them, too long ones, or nothing to train.
    """
    problems = Problems()
    for file, shard in zip(files, shards, strict=True):
        problems.join(file, shard.problems)
    train, validation = (
        _merge(split, data, limit, files, shards, folder, problems) for split in ("train", "validation")
    )
    problems.settle()
    _require(train, files, limit, MIN_EXAMPLES)
    if any(file.split == "validation" for file in files):
        _require(validation, files, limit, 1)
    elif data.validation_split:
        validation.kept = repeats.hold_out(folder, sides("train", data), data.validation_split, seed)
        train.kept -= validation.kept
    return train, validation


def _merge(
    split: Split, data: Data, limit: int, files: list[File], shards: list[Shard], folder: Path, problems: Problems
) -> Taken:
    taken = Taken(split)
    with ExitStack() as opened:
        writers = [opened.enter_context(Writer(folder, side)) for side in sides(split, data)]
        digests = opened.enter_context(Column(repeats.path(folder, split), np.uint64))
        for number, (file, shard) in enumerate(zip(files, shards, strict=True)):
            if file.split != split:
                continue
            taken.rows += shard.rows
            for together in blocks(shard.folder, *sides(NAME, data)):
                fitting = _fit(together, data, limit, file, taken, problems)
                for writer, block in zip(writers, fitting, strict=True):
                    writer.add(replace(block, files=np.full(len(block), number, dtype=np.int32)))
                digests.extend(repeats.digests(fitting))
        taken.kept = writers[0].n_examples
    return taken


def _fit(
    together: tuple[Block, ...], data: Data, limit: int, file: File, taken: Taken, problems: Problems
) -> tuple[Block, ...]:
    """The examples, or both sides of pairs, that are within the limit and have something to learn."""
    longest = np.maximum.reduce([block.lengths for block in together])
    lines, over = together[0].lines, longest > limit
    kept = ~over if data.overlength != "truncate" else np.ones(len(lines), dtype=np.bool_)
    if data.overlength == "truncate":
        taken.truncated.add(lines[over])
        together = tuple(block.cut(limit) for block in together) if over.any() else together
    elif data.overlength == "drop":
        taken.dropped.add(lines[over])
    else:
        for at in np.flatnonzero(over):
            message = f"{longest[at]:,} tokens, where max_length is {limit:,}"
            problems.add("overlength_examples", file, "overlength", int(lines[at]), message)
    idle = kept & ~_teaches(together)
    taken.untrained.add(lines[idle])
    kept &= ~idle
    return together if kept.all() else tuple(block.only(kept) for block in together)


def _teaches(together: tuple[Block, ...]) -> npt.NDArray[np.bool_]:
    """Which examples have a trained token; of pairs: on both sides, and the sides differ. Shape (n,)."""
    found: npt.NDArray[np.bool_] = np.logical_and.reduce([block.trained > 0 for block in together])
    if len(together) == 2:
        chosen, rejected = together
        begins = chosen.begins, rejected.begins
        for at in np.flatnonzero(chosen.lengths == rejected.lengths):
            first, second, length = int(begins[0][at]), int(begins[1][at]), int(chosen.lengths[at])
            if np.array_equal(chosen.tokens[first : first + length], rejected.tokens[second : second + length]):
                found[at] = False
    return found


def _require(taken: Taken, files: list[File], limit: int, minimum: int) -> None:
    """Refuse a split of which too little is left."""
    param = PARAMS[taken.split]
    name = ", ".join(file.uri for file in files if file.split == taken.split) or param
    if taken.rows == 0:
        raise StepError("invalid_file_format", f"{name} is empty.", param=param)
    if taken.rows < minimum:
        raise too_few(name, taken.rows, param=param, minimum=minimum)
    if taken.kept == 0 and taken.untrained.rows:
        lines = ", ".join(map(str, taken.untrained.lines))
        told = f"{name}: no example has a token that would be trained (lines {lines}"
        told += ", …" if taken.untrained.rows > len(taken.untrained.lines) else ""
        remedy = BY_NAME["no_trainable_tokens"].remedy
        raise StepError("no_trainable_tokens", f"{told}). {remedy}", param=param, lines=taken.untrained.lines)
    if taken.kept == 0:
        told = f"{name}: every example is longer than max_length ({limit:,} tokens)."
        raise StepError("overlength_examples", f"{told} {BY_NAME['overlength_examples'].remedy}", param=param)
    if taken.kept < minimum:
        left_out = f"{taken.dropped.rows} longer than max_length and {taken.untrained.rows} with nothing to train were left out"
        told = f"{name}: only {taken.kept} of {taken.rows} examples can be used ({left_out}); at least {minimum} are needed."
        raise StepError("invalid_n_examples", told, param=param)
