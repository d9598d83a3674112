"""What PREPARE_DATA tells about a prepared dataset: its numbers, the sentence a user reads, and questions to ask later.

Reads the arrays, some millions of tokens at a time; nothing here changes what is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.config import Data
from finetune.data import reading
from finetune.data.arrays import Examples, Split
from finetune.data.columns import blocks
from finetune.data.formats import Reader
from finetune.data.intake import Taken
from finetune.data.problems import File
from finetune.data.repeats import find
from finetune.data.row import Pair, Row
from finetune.data.shards import sides

SAMPLES = 500


@dataclass
class Counted:
    """The numbers of one split. A pair is an example whose two sides are rows of tokens.

    Attributes:
        examples: Rows, or pairs of them.
        tokens: Of all sides; `trained_tokens` are those with loss.
        longest: Tokens of the longest side; it stands at example `longest_at`.
        lengths: How many sides have so many tokens, shape (longest + 1,).
    """

    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    longest: int = 0
    longest_at: int = 0
    lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    def at(self, share: float) -> float:
        """The length that `share` of the rows of tokens do not exceed, interpolated as numpy's percentile does."""
        upto = np.cumsum(self.lengths)
        rank = share * (int(upto[-1]) - 1)
        low, high = (int(np.searchsorted(upto, place, side="right")) for place in (int(rank), int(np.ceil(rank))))
        return round(low + (high - low) * (rank - int(rank)), 1)

    def as_json(self, lines: Lines) -> dict[str, Any]:
        """As statistics.json has it."""
        found = {"examples": self.examples, "tokens": self.tokens, "trained_tokens": self.trained_tokens}
        if not self.examples:
            return found
        spread = {
            "min": int(np.flatnonzero(self.lengths)[0]),
            "median": self.at(0.5),
            "mean": round(self.tokens / int(self.lengths.sum()), 1),
            "p95": self.at(0.95),
            "max": self.longest,
        }
        where = lines.place(self.longest_at)
        return found | {
            "share_masked": round(1 - self.trained_tokens / self.tokens, 4),
            "tokens_a_row": spread,
            "longest": self.longest,
            "longest_line": where["line"],
            "longest_file": where["file"],
        }


class Lines:
    """Where the examples of a split come from."""

    def __init__(self, folder: Path, split: Split, files: list[File]) -> None:
        self._examples, self._files = Examples(folder, split), files
        self._several = sum(file.split == split for file in files) > 1

    def place(self, index: int) -> dict[str, Any]:
        """Line and file of an example."""
        return {"line": int(self._examples.lines[index]), "file": self._file(index).uri}

    def text(self, index: int) -> str:
        """Its line, with the file's name where a split has several."""
        line = str(self._examples.lines[index])
        return f"{self._file(index).uri.rpartition('/')[2]}:{line}" if self._several else line

    def _file(self, index: int) -> File:
        return self._files[int(self._examples.files[index])]


def count(folder: Path, split: Split, data: Data) -> Counted:
    """The numbers of a split, by one pass over it."""
    found = Counted()
    for together in blocks(folder, *sides(split, data)):
        for block in together:
            sizes = np.bincount(block.lengths)
            if len(sizes) > len(found.lengths):
                found.longest, found.longest_at = len(sizes) - 1, found.examples + int(block.lengths.argmax())
                sizes[: len(found.lengths)] += found.lengths
                found.lengths = sizes
            else:
                found.lengths[: len(sizes)] += sizes
            found.tokens += len(block.tokens)
            found.trained_tokens += int(block.mask.sum())
        found.examples += len(together[0])
    return found


def describe(
    folder: Path, counted: tuple[Counted, Counted], taken: tuple[Taken, Taken], files: list[File], total_steps: int
) -> dict[str, Any]:
    """statistics.json: numbers of both splits, what was left out, what repeats, and `message`, the sentence for the events."""
    again = find(folder)
    train, validation = Lines(folder, "train", files), Lines(folder, "validation", files)
    found: dict[str, Any] = {
        "train": counted[0].as_json(train),
        "validation": counted[1].as_json(validation),
        **{
            kind: {split.split: asdict(getattr(split, kind)) for split in taken}
            for kind in ("dropped", "truncated", "untrained")
        },
        "duplicates": again.duplicates,
        "duplicate_rows": [train.place(late) | {"first": train.place(soon)} for soon, late in again.duplicate_pairs],
        "leaked": again.leaked,
        "leaked_rows": [validation.place(late) | {"first": train.place(soon)} for soon, late in again.leaked_pairs],
        "total_steps": total_steps,
    }
    found["warnings"] = found["leaked"] + sum(
        split["rows"] for kind in ("truncated", "untrained") for split in found[kind].values()
    )
    duplicates = [train.text(late) for _, late in again.duplicate_pairs]
    leaked = [validation.text(late) for _, late in again.leaked_pairs]
    return found | {"message": sentence(found, duplicates, leaked)}


def sentence(found: dict[str, Any], duplicates: list[str], leaked: list[str]) -> str:
    """What a user reads, such as "Prepared 128 examples: 5,412 tokens, 1,003 of them trained; 96 steps".

    Args:
        found: The numbers.
        duplicates: The first lines that repeat.
        leaked: The first lines of validation that stand in training.
    """
    train = found["train"]
    told = f"Prepared {train['examples']:,} examples: {train['tokens']:,} tokens, {train['trained_tokens']:,} of them trained; {found['total_steps']:,} steps"
    asides: list[tuple[int, str, list[str]]] = [
        (found["validation"]["examples"], "for validation", []),
        (found["leaked"], "of those for validation also stand in training", leaked),
        (found["duplicates"], "repeated", duplicates),
        _aside(found["dropped"], "too long and left out"),
        _aside(found["truncated"], "too long and cut"),
        _aside(found["untrained"], "left out with nothing to train"),
    ]
    return "; ".join([told, *(f"{number:,} {text}{_named(lines, number)}" for number, text, lines in asides if number)])


def _aside(named: dict[str, Any], text: str) -> tuple[int, str, list[str]]:
    """Rows of one kind in both splits: how many, what they are, the first lines."""
    rows = sum(split["rows"] for split in named.values())
    return rows, text, [str(line) for split in named.values() for line in split["lines"]][:10]


def samples(folder: Path, files: list[File], data: dict[Split, Data]) -> Iterator[dict[str, Any]]:
    """Up to 500 held-out questions, evenly spread: {"messages", "wanted"}, or {"prompt", "wanted"}. Plain texts and rows with tools have none.

    Args:
        folder: With the arrays of the validation split.
        files: The dataset; the rows' files are read again.
        data: How the rows of each split are read.
    """
    validation = Examples(folder, "validation")
    n = len(validation)
    chosen = sorted({index * n // SAMPLES for index in range(SAMPLES)}) if n else []
    for number in sorted({int(validation.files[at]) for at in chosen}):
        file = files[number]
        wanted = {int(validation.lines[at]) for at in chosen if validation.files[at] == number}
        with file.path.open("rb") as stream:
            for row in Reader(data[file.split]).rows(reading.Source(stream), only=wanted):
                wanted.discard(row.line)
                if not isinstance(row, reading.Flaw):
                    yield from _question(row.chosen if isinstance(row, Pair) else row)
                if not wanted:
                    break


def write_lines(path: Path, values: Iterator[dict[str, Any]]) -> None:
    """Write JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _named(lines: list[str], number: int) -> str:
    if not lines:
        return ""
    return f" (line{'s' if number > 1 else ''} {', '.join(lines)}{', …' if number > len(lines) else ''})"


def _question(row: Row) -> Iterator[dict[str, Any]]:
    if row.tools or any(message.tool_calls or message.role == "tool" for message in row.messages):
        return  # the answer would be compared as text
    if row.messages:
        asked = [{"role": message.role, "content": message.content} for message in row.messages[:-1]]
        if asked:
            yield {"messages": asked, "wanted": row.messages[-1].content}
    elif row.prompt:
        yield {"prompt": row.prompt, "wanted": row.text}
