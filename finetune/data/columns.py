"""Columns of numbers on disk (.npy), and a pass over examples some millions of tokens at a time, whatever their number.

Plain reads and writes, no memory map: a pass leaves nothing behind in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PARTS: dict[str, type[np.generic]] = {
    "tokens": np.int32,
    "mask": np.bool_,
    "offsets": np.int64,
    "lines": np.int64,
    "files": np.int32,
}
"""The columns of one side of a split: `arrays` says what they hold."""

BLOCK_TOKENS = 1 << 21
BLOCK_ROWS = 1 << 16
"""What a pass looks at together: at most so many tokens (or one example), and so many examples."""


class Column:
    """A one-dimensional .npy file that grows. The header has room for any length, and is written again at the end."""

    def __init__(self, path: Path, kind: npt.DTypeLike) -> None:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _header(self) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(self._kind),
            "fortran_order": False,
            "shape": (self._length,),
        }
        np.lib.format.write_array_header_1_0(self._file, description)


@dataclass(frozen=True)
class Block:
    """Some examples of one side, one after another.

    Attributes:
        tokens: int32, shape (t,).
        mask: bool, shape (t,).
        lengths: Tokens an example, int64, shape (n,).
        lines: int64, shape (n,).
        files: int32, shape (n,).
    """

    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    files: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def begins(self) -> npt.NDArray[np.int64]:
        """Where each example begins in `tokens`, shape (n,)."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def trained(self) -> npt.NDArray[np.int64]:
        """Trained tokens an example, shape (n,)."""
        counted = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        trained: npt.NDArray[np.int64] = counted[self.begins + self.lengths] - counted[self.begins]
        return trained

    def cut(self, limit: int) -> Block:
        """The first `limit` tokens of each example."""
        inside = np.arange(len(self.tokens)) - np.repeat(self.begins, self.lengths) < limit
        lengths = np.minimum(self.lengths, limit)
        return Block(self.tokens[inside], self.mask[inside], lengths, self.lines, self.files)

    def only(self, kept: npt.NDArray[np.bool_]) -> Block:
        """The examples that `kept`, shape (n,), says."""
        tokens = np.repeat(kept, self.lengths)
        return Block(self.tokens[tokens], self.mask[tokens], self.lengths[kept], self.lines[kept], self.files[kept])


class Stored:
    """A one-dimensional .npy file, read in pieces."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        np.lib.format.read_magic(self._file)
        (self._length,), _, self._kind = np.lib.format.read_array_header_1_0(self._file)
        self._begin = self._file.tell()

    def __len__(self) -> int:
        return int(self._length)

    def read(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Values [begin, end)."""
        self._file.seek(self._begin + begin * self._kind.itemsize)
        return np.fromfile(self._file, self._kind, max(0, min(end, len(self)) - begin))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def blocks(folder: Path, *sides: str) -> Iterator[tuple[Block, ...]]:
    """All examples of sides that go together (one, or the two of preference pairs), in order, some at a time.

    Args:
        folder: Where the arrays lie.
        sides: Their names; one that was not written has no examples.
    """
    if not all((folder / f"{side}.lines.npy").is_file() for side in sides):
        return
    with ExitStack() as opened:
        columns = [
            {part: opened.enter_context(Stored(folder / f"{side}.{part}.npy")) for part in PARTS} for side in sides
        ]
        begin, count = 0, len(columns[0]["lines"])
        while begin < count:
            offsets = [side["offsets"].read(begin, begin + BLOCK_ROWS + 1) for side in columns]
            within = [int(np.searchsorted(each, each[0] + BLOCK_TOKENS, side="right")) - 1 for each in offsets]
            end = begin + max(1, min(within))
            yield tuple(_block(side, each, begin, end) for side, each in zip(columns, offsets, strict=True))
            begin = end


def _block(side: dict[str, Stored], offsets: npt.NDArray[np.int64], begin: int, end: int) -> Block:
    first, last = int(offsets[0]), int(offsets[end - begin])
    return Block(
        tokens=side["tokens"].read(first, last),
        mask=side["mask"].read(first, last),
        lengths=np.diff(offsets[: end - begin + 1]),
        lines=side["lines"].read(begin, end),
        files=side["files"].read(begin, end),
    )
