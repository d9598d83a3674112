"""Examples that stand in a dataset more than once, and which are held out: decided by digests of their content.

`<split>.digests.npy` holds 16 bytes an example while a dataset is prepared. What is looked at together is bounded, whatever
the number of examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.data.arrays import Side, Split, Writer
from finetune.data.columns import BLOCK_ROWS, PARTS, Block, Column, Stored, blocks

Words = npt.NDArray[np.uint64]

PART_ROWS = 1 << 21
"""Examples that are sorted together: some 100 MB."""
NAMED = 10
BINS = 1 << 16


@dataclass
class Repeats:
    """What stands in a dataset more than once. Pairs are indices: (the example that is repeated, the one that repeats it).

    Attributes:
        duplicates: Training examples equal to an earlier one; `duplicate_pairs` are the first of them.
        leaked: Validation examples that also stand in training; `leaked_pairs` likewise: (in training, in validation).
    """

    duplicates: int = 0
    duplicate_pairs: list[tuple[int, int]] = field(default_factory=list)
    leaked: int = 0
    leaked_pairs: list[tuple[int, int]] = field(default_factory=list)


def path(folder: Path, split: Split) -> Path:
    """Where the digests of a split lie."""
    return folder / f"{split}.digests.npy"


def digests(together: tuple[Block, ...]) -> Words:
    """Digests of examples, or of pairs with both sides: equal for equal tokens and masks. Shape (2 n,)."""
    begins = [block.begins for block in together]
    found = bytearray()
    for at in range(len(together[0])):
        total = hashlib.blake2b(digest_size=16)
        for block, starts in zip(together, begins, strict=True):
            first = int(starts[at])
            last = first + int(block.lengths[at])
            total.update(block.tokens[first:last].tobytes() + b"|" + block.mask[first:last].tobytes())
        found += total.digest()
    return np.frombuffer(bytes(found), dtype=np.uint64)


def find(folder: Path) -> Repeats:
    """What stands more than once in the splits of a prepared folder."""
    found = Repeats()
    with Stored(path(folder, "train")) as train, Stored(path(folder, "validation")) as validation:
        parts = 1 + (len(train) + len(validation)) // (2 * PART_ROWS)
        for part in range(parts):
            _compare(_part(train, part, parts), _part(validation, part, parts), found)
    return found


def _part(stored: Stored, part: int, parts: int) -> tuple[Words, npt.NDArray[np.int64]]:
    """The digests of one part, by their first word: shape (k, 2), and their indices (k,)."""
    words, indices = [np.zeros((0, 2), dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for begin, read in _pieces(stored):
        here = np.flatnonzero(read[:, 0] % np.uint64(parts) == part)
        words.append(read[here])
        indices.append(here + begin)
    return np.concatenate(words), np.concatenate(indices)


def _pieces(stored: Stored) -> Iterator[tuple[int, Words]]:
    """All digests, shape (k, 2), some at a time, each with the index of the first."""
    for begin in range(0, len(stored), 2 * BLOCK_ROWS):
        yield begin // 2, stored.read(begin, begin + 2 * BLOCK_ROWS).reshape(-1, 2)


def _compare(
    train: tuple[Words, npt.NDArray[np.int64]], validation: tuple[Words, npt.NDArray[np.int64]], found: Repeats
) -> None:
    words = np.concatenate([train[0], validation[0]])
    index = np.concatenate([train[1], validation[1]])
    held = np.repeat([False, True], [len(train[1]), len(validation[1])])
    order = np.lexsort((index, held, words[:, 1], words[:, 0]))
    words, index, held = words[order], index[order], held[order]
    new = np.ones(len(index), dtype=np.bool_)
    new[1:] = (words[1:] != words[:-1]).any(axis=1)
    first = np.flatnonzero(new)[np.cumsum(new) - 1] if len(new) else np.zeros(0, dtype=np.int64)
    again, leaked = ~held & ~new, held & ~held[first]
    found.duplicates += int(again.sum())
    found.leaked += int(leaked.sum())
    found.duplicate_pairs = _earliest(found.duplicate_pairs, index[first[again]], index[again])
    found.leaked_pairs = _earliest(found.leaked_pairs, index[first[leaked]], index[leaked])


def _earliest(
    known: list[tuple[int, int]], originals: npt.NDArray[np.int64], repeating: npt.NDArray[np.int64]
) -> list[tuple[int, int]]:
    soonest = np.argsort(repeating, kind="stable")[:NAMED]
    pairs = [*known, *zip(originals[soonest].tolist(), repeating[soonest].tolist(), strict=True)]
    return sorted(pairs, key=lambda pair: pair[1])[:NAMED]


def hold_out(folder: Path, sides: tuple[Side, ...], share: float, seed: int) -> int:
    """Move `share` of the training examples to validation, at least one and never all, order kept; of pairs both sides.

    Chosen by a hash of seed and content, so that equal examples stand side by side in the order and are not torn apart
    except at its one end; the choice is the same on every machine.

    Args:
        folder: With at least two training examples and their digests.
        sides: The names of the training arrays.
        share: In (0, 1).
        seed: Any.
    Returns:
        How many were moved.
    """
    whole = [side.replace("train", "whole") for side in sides]
    for side, name in zip(sides, whole, strict=True):
        for part in PARTS:
            (folder / f"{side}.{part}.npy").rename(folder / f"{name}.{part}.npy")
    path(folder, "train").rename(folder / "whole.digests.npy")
    with ExitStack() as opened:
        stored = opened.enter_context(Stored(folder / "whole.digests.npy"))
        count = len(stored) // 2
        moved = min(count - 1, max(1, round(count * share)))
        apart = _chosen(stored, moved, seed)
        splits: tuple[Split, ...] = ("train", "validation")
        writers = {
            split: [opened.enter_context(Writer(folder, _named(side, split))) for side in sides] for split in splits
        }
        marks = {split: opened.enter_context(Column(path(folder, split), np.uint64)) for split in splits}
        begin = 0
        for together in blocks(folder, *whole):
            words = stored.read(2 * begin, 2 * (begin + len(together[0]))).reshape(-1, 2)
            held = apart(words, begin)
            for split, kept in zip(splits, (~held, held), strict=True):
                for writer, block in zip(writers[split], together, strict=True):
                    writer.add(block.only(kept))
                marks[split].extend(words[kept].ravel())
            begin += len(together[0])
    for left in folder.glob("whole.*"):
        left.unlink()
    return moved


def _named(side: Side, split: Split) -> Side:
    return side if split == "train" else "validation" if side == "train" else "validation.rejected"


def _chosen(stored: Stored, count: int, seed: int) -> Callable[[Words, int], npt.NDArray[np.bool_]]:
    """Says of digests, shape (k, 2), that begin at an index, which are among the `count` first by hash, then by index."""
    sizes = np.zeros(BINS, dtype=np.int64)
    for _, words in _pieces(stored):
        sizes += np.bincount(_bins(_keys(words, seed)), minlength=BINS)
    edge = int(np.searchsorted(np.cumsum(sizes), count))
    keys, indices = [], []
    for begin, words in _pieces(stored):
        read = _keys(words, seed)
        here = np.flatnonzero(_bins(read) == edge)
        keys.append(read[here])
        indices.append(here + begin)
    order = np.lexsort((np.concatenate(indices), np.concatenate(keys)))
    at_edge = np.concatenate(indices)[order[: count - int(sizes[:edge].sum())]]

    def chosen(words: Words, begin: int) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (_bins(_keys(words, seed)) < edge) | np.isin(
            np.arange(begin, begin + len(words)), at_edge
        )
        return found

    return chosen


def _keys(words: Words, seed: int) -> Words:
    """The place of each content in an order that the seed decides: splitmix64 (Steele et al. 2014) over both. Shape (k,)."""
    salt = np.frombuffer(hashlib.blake2b(b"%d" % seed, digest_size=8).digest(), dtype=np.uint64)
    mixed = words[:, 0] ^ salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _bins(keys: Words) -> npt.NDArray[np.int64]:
    return (keys >> np.uint64(48)).astype(np.int64)
