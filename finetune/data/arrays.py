"""The prepared examples on disk: flat numpy arrays, written as a stream, read by memory map.

`<split>.tokens.npy` int32 (all tokens), `<split>.mask.npy` bool (True: this token carries loss as a target),
`<split>.offsets.npy` int64 (n + 1: example i is tokens[offsets[i]:offsets[i + 1]]), `<split>.lines.npy` int64 (n).
Of preference pairs these are the chosen sides; the rejected ones lie beside as `<split>.rejected.*.npy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from finetune.data.encode import Example

Split = Literal["train", "validation"]
Side = Literal["train", "validation", "train.rejected", "validation.rejected"]
REJECTED: dict[Split, Side] = {"train": "train.rejected", "validation": "validation.rejected"}
PARTS: dict[str, type[np.generic]] = {"tokens": np.int32, "mask": np.bool_, "offsets": np.int64, "lines": np.int64}


class Column:
    """A one-dimensional .npy file that grows. The header has room for any length, and is written again at the end."""

    def __init__(self, path: Path, kind: type[np.generic]) -> None:
        self._file = path.open("wb")
        self._kind = np.dtype(kind)
        self._length = 0
        self._header()

    def extend(self, values: npt.ArrayLike) -> None:
        """Append values, shape (k,)."""
        array = np.asarray(values, dtype=self._kind)
        self._file.write(array.tobytes())
        self._length += array.size

    def close(self) -> None:
        """Write the length and close the file."""
        self._file.seek(0)
        self._header()
        self._file.close()

    def _header(self) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(self._kind),
            "fortran_order": False,
            "shape": (self._length,),
        }
        np.lib.format.write_array_header_1_0(self._file, description)


class Writer:
    """Writes the examples of one split, in order; leaves no file if there was no example.

    Args:
        folder: Where the arrays go.
        split: Their name.
    """

    def __init__(self, folder: Path, split: Side) -> None:
        self._paths = [folder / f"{split}.{part}.npy" for part in PARTS]
        self._tokens, self._mask, self._offsets, self._lines = (
            Column(path, kind) for path, kind in zip(self._paths, PARTS.values(), strict=True)
        )
        self._end = 0
        self.n_examples = 0
        self._offsets.extend([0])

    def add(self, example: Example) -> None:
        """Append one example."""
        self._end += len(example.tokens)
        self.n_examples += 1
        self._tokens.extend(example.tokens)
        self._mask.extend(example.mask)
        self._offsets.extend([self._end])
        self._lines.extend([example.line])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for column in (self._tokens, self._mask, self._offsets, self._lines):
            column.close()
        if self.n_examples == 0:
            for path in self._paths:
                path.unlink()


class Examples:
    """The examples of one split, by memory map.

    Args:
        folder: A prepared/ folder.
        split: Which; one that was not written has no examples.
    """

    def __init__(self, folder: Path, split: Side) -> None:
        self._there = (folder / f"{split}.offsets.npy").is_file()
        self.tokens, self.mask, self.offsets, self.lines = (
            self._read(folder / f"{split}.{part}.npy", kind) for part, kind in PARTS.items()
        )

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Example:
        """Example `index`, 0-based."""
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return Example(int(self.lines[index]), self.tokens[begin:end], self.mask[begin:end])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens an example, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def trained(self) -> npt.NDArray[np.int64]:
        """Trained tokens an example, shape (n,)."""
        ends = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        return np.diff(ends[self.offsets]) if len(self) else np.zeros(0, dtype=np.int64)

    def _read(self, path: Path, kind: type[np.generic]) -> npt.NDArray[Any]:
        return np.load(path, mmap_mode="r") if self._there else np.zeros(0, dtype=kind)


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


def digest(example: Example) -> bytes:
    """16 bytes that are equal for equal tokens and masks."""
    return hashlib.blake2b(example.tokens.tobytes() + b"|" + example.mask.tobytes(), digest_size=16).digest()


def divide(folder: Path, held_out: Iterable[int]) -> None:
    """Move the examples with the given indices of `train` to `validation`, order kept; of pairs both sides."""
    apart = set(held_out)
    for train, validation in (
        ("train", "validation"),
        *([("train.rejected", "validation.rejected")] if paired(folder) else []),
    ):
        for part in PARTS:
            (folder / f"{train}.{part}.npy").rename(folder / f"whole.{part}.npy")
        whole = Examples(folder, "whole")  # type: ignore[arg-type]  # a name that lives within this function
        with Writer(folder, train) as rest, Writer(folder, validation) as held:  # type: ignore[arg-type]  # sides, as above
            for index in range(len(whole)):
                (held if index in apart else rest).add(whole[index])
        for part in PARTS:
            (folder / f"whole.{part}.npy").unlink()


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
