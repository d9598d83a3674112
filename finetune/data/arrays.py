"""The prepared examples on disk: flat numpy arrays, written as a stream, read by memory map.

`<split>.tokens.npy` int32 (all tokens), `<split>.mask.npy` bool (True: this token carries loss as a target),
`<split>.offsets.npy` int64 (n + 1: example i is tokens[offsets[i]:offsets[i + 1]]), `<split>.lines.npy` int64 (n),
`<split>.files.npy` int32 (n: which file of the dataset, 0-based). Of preference pairs these are the chosen sides; the
rejected ones lie beside as `<split>.rejected.*.npy`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from finetune.data.columns import PARTS, Block, Column, blocks
from finetune.data.encode import Example

Split = Literal["train", "validation"]
Side = Literal["train", "validation", "train.rejected", "validation.rejected"]
REJECTED: dict[Split, Side] = {"train": "train.rejected", "validation": "validation.rejected"}


class Writer:
    """Writes the examples of one side of a split, in order; leaves no file if there was no example.

    Args:
        folder: Where the arrays go.
        split: Their name.
    """

    def __init__(self, folder: Path, split: Side) -> None:
        self._paths = [folder / f"{split}.{part}.npy" for part in PARTS]
        self._tokens, self._mask, self._offsets, self._lines, self._files = (
            Column(path, kind) for path, kind in zip(self._paths, PARTS.values(), strict=True)
        )
        self._end = 0
        self.n_examples = 0
        self._offsets.extend([0])

    def add(self, block: Block) -> None:
        """Append examples."""
        self._tokens.extend(block.tokens)
        self._mask.extend(block.mask)
        self._offsets.extend(self._end + np.cumsum(block.lengths))
        self._lines.extend(block.lines)
        self._files.extend(block.files)
        self._end += len(block.tokens)
        self.n_examples += len(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for column in (self._tokens, self._mask, self._offsets, self._lines, self._files):
            column.close()
        if self.n_examples == 0:
            for path in self._paths:
                path.unlink()


class Examples:
    """The examples of one split, by memory map: nothing but what is asked for is brought into memory.

    Args:
        folder: A prepared/ folder.
        split: Which; one that was not written has no examples.
    """

    def __init__(self, folder: Path, split: Side) -> None:
        self._place = folder, split
        self.tokens, self.mask, self.offsets, self.lines, self.files = (
            self._read(folder / f"{split}.{part}.npy", kind) for part, kind in PARTS.items()
        )

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Example:
        """Example `index`, 0-based."""
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return Example(int(self.lines[index]), self.tokens[begin:end], self.mask[begin:end])

    def __reduce__(self) -> tuple[Any, ...]:
        return Examples, self._place  # another process maps the files itself; pickled maps would be copies

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens an example, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def trained(self) -> npt.NDArray[np.int64]:
        """Trained tokens an example, shape (n,)."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *(block.trained for (block,) in blocks(*self._place))])

    def _read(self, path: Path, kind: type[np.generic]) -> npt.NDArray[Any]:
        return np.load(path, mmap_mode="r") if path.is_file() else np.zeros(0, dtype=kind)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A preference as the model sees it: both sides whole, each with the question before its answer."""

    chosen: Example
    rejected: Example


class Pairs:
    """The preference pairs of one split, by memory map.

    Args:
        folder: A prepared/ folder.
        split: Which; one that was not written has no pairs.
    Attributes:
        chosen: Every better side, as `Examples`.
        rejected: Every worse side, in the same order.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.chosen, self.rejected = Examples(folder, split), Examples(folder, REJECTED[split])
        if len(self.chosen) != len(self.rejected):
            raise ValueError(f"{folder}: {split} has {len(self.chosen)} chosen and {len(self.rejected)} rejected sides")

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> EncodedPair:
        """Pair `index`, 0-based."""
        return EncodedPair(self.chosen[index], self.rejected[index])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of the longer side of each pair, shape (n,)."""
        return np.maximum(self.chosen.lengths, self.rejected.lengths)


def paired(folder: Path) -> bool:
    """Whether a prepared/ folder holds preference pairs."""
    return (folder / "train.rejected.offsets.npy").is_file()


def data_sha256(folder: Path) -> str:
    """sha256 over the prepared tokens, masks and offsets of both splits (of pairs: of all four sides), in hex."""
    total = hashlib.sha256()
    sides = ("train", "validation", *(REJECTED.values() if paired(folder) else ()))
    for split in sides:
        for part in ("tokens", "mask", "offsets"):
            path = folder / f"{split}.{part}.npy"
            total.update(f"{split}.{part}\0".encode())
            if path.is_file():
                with path.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
