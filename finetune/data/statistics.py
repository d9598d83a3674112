"""What PREPARE_DATA tells about a prepared dataset: its numbers, the sentence a user reads, and questions to ask later.

Reads the arrays; nothing here changes what is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import Data
from finetune.data import reading
from finetune.data.arrays import Examples, digest
from finetune.data.formats import Reader
from finetune.data.intake import Taken
from finetune.data.problems import File
from finetune.data.row import Pair, Row
from finetune.steps import Resolved

SAMPLES = 32


def describe(train: Examples, validation: Examples, taken: tuple[Taken, Taken], resolved: Resolved) -> dict[str, Any]:
    """statistics.json: numbers of both splits, what was left out, and `message`, the sentence for the job's events."""
    seen, duplicates = _distinct(train)
    leaked = sum(digest(validation[index]) in seen for index in range(len(validation)))
    found = {
        "train": _of_split(train),
        "validation": _of_split(validation),
        "dropped": resolved.dropped,
        "truncated": resolved.truncated,
        "untrained": {split.split: {"rows": split.untrained, "lines": split.untrained_lines} for split in taken},
        "duplicates": duplicates,
        "leaked": leaked,
        "total_steps": resolved.total_steps,
    }
    return found | {"message": sentence(found)}


def sentence(found: dict[str, Any]) -> str:
    """What a user reads, such as "Prepared 128 examples: 5,412 tokens, 1,003 of them trained; 96 steps"."""
    train = found["train"]
    told = f"Prepared {train['examples']:,} examples: {train['tokens']:,} tokens, {train['trained_tokens']:,} of them trained; {found['total_steps']:,} steps"
    untrained = sum(split["rows"] for split in found["untrained"].values())
    lines = [line for split in found["untrained"].values() for line in split["lines"]]
    asides = [
        (found["validation"]["examples"], "{n} for validation"),
        (found["leaked"], "{n} of those for validation also stand in training"),
        (found["duplicates"], "{n} repeated"),
        (found["dropped"], "{n} too long and left out"),
        (found["truncated"], "{n} too long and cut"),
        (untrained, "{n} left out with nothing to train (lines " + ", ".join(map(str, lines[:10])) + ")"),
    ]
    return "; ".join([told, *(text.format(n=f"{count:,}") for count, text in asides if count)])


def samples(validation: Examples, origins: list[File], data: Data) -> Iterator[dict[str, Any]]:
    """Up to 32 held-out questions, evenly spread: {"messages", "wanted"}, or {"prompt", "wanted"}. Plain texts and rows with tools have none.

    Args:
        validation: The held-out examples.
        origins: The file each is from; it is read again.
        data: How its rows are read.
    """
    n = len(validation)
    chosen = {
        (origins[at], int(validation.lines[at])) for at in {index * n // SAMPLES for index in range(SAMPLES)} if at < n
    }
    for file in dict.fromkeys(origins):
        wanted = {line for origin, line in chosen if origin == file}
        with file.path.open("rb") as stream:
            for row in Reader(data).rows(reading.Source(stream)):
                if wanted and not isinstance(row, reading.Flaw) and row.line in wanted:
                    wanted.discard(row.line)
                    yield from _question(row.chosen if isinstance(row, Pair) else row)
                if not wanted:
                    break


def write_lines(path: Path, values: Iterator[dict[str, Any]]) -> None:
    """Write JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def _question(row: Row) -> Iterator[dict[str, Any]]:
    if row.tools or any(message.tool_calls or message.role == "tool" for message in row.messages):
        return  # the answer would be compared as text
    if row.messages:
        asked = [{"role": message.role, "content": message.content} for message in row.messages[:-1]]
        if asked:
            yield {"messages": asked, "wanted": row.messages[-1].content}
    elif row.prompt:
        yield {"prompt": row.prompt, "wanted": row.text}


def _of_split(examples: Examples) -> dict[str, Any]:
    lengths, tokens, trained = examples.lengths, len(examples.tokens), int(examples.mask.sum())
    if not len(examples):
        return {"examples": 0, "tokens": 0, "trained_tokens": 0}
    middle, most = np.percentile(lengths, [50, 95])
    return {
        "examples": len(examples),
        "tokens": tokens,
        "trained_tokens": trained,
        "share_masked": round(1 - trained / tokens, 4),
        "tokens_a_row": {"mean": round(tokens / len(examples), 1), "median": float(middle), "p95": float(most)},
        "longest": int(lengths.max()),
        "longest_line": int(examples.lines[int(lengths.argmax())]),
    }


def _distinct(examples: Examples) -> tuple[set[bytes], int]:
    """The different contents of a split, and how many examples repeat an earlier one."""
    seen = {digest(examples[index]) for index in range(len(examples))}
    return seen, len(examples) - len(seen)
