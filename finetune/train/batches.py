"""Which examples an optimiser step takes, and how a step is cut into micro-batches. Pure arithmetic, no torch.

A step's examples depend on the seed and the epoch alone. How they are cut depends on memory, and does not change what is
learned: the loss of a step is the sum over its trained tokens divided by their number.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from finetune.data.resolve import steps_per_epoch
from finetune.estimate.memory import TOKENS

CPU_TOKENS, GPU_TOKENS = TOKENS["cpu"], TOKENS["gpu"]


def epoch_order(n_examples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the examples in one epoch.

    Args:
        n_examples: How many there are.
        seed: Of the job.
        epoch: 0-based.
    Returns:
        A permutation of 0 … n - 1, shape (n,).
    """
    return np.random.default_rng([seed, epoch]).permutation(n_examples).astype(np.int64)


class Steps:
    """The batch sampler: each batch is the examples of one optimiser step.

    Args:
        n_examples: Of the training split.
        batch_size: Examples a step, accumulation included.
        seed: Of the job.
    """

    def __init__(self, n_examples: int, batch_size: int, seed: int) -> None:
        self.n_examples, self.batch_size, self.seed = n_examples, batch_size, seed
        self.drop_last = False
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0-based) that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return steps_per_epoch(self.n_examples, self.batch_size, 1)

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.n_examples, self.seed, self.epoch)
        for begin in range(0, self.n_examples, self.batch_size):
            yield order[begin : begin + self.batch_size].tolist()

    def trained_before(self, step: int, trained: npt.NDArray[np.int64]) -> int:
        """Trained tokens of the first `step` steps of the whole training.

        Args:
            step: Steps done, over all epochs.
            trained: Trained tokens an example, shape (n,).
        """
        epochs, rest = divmod(step, len(self))
        begun = epoch_order(self.n_examples, self.seed, epochs)[: rest * self.batch_size]
        return epochs * int(trained.sum()) + int(trained[begun].sum())


def share(rows: Sequence[int], lengths: npt.NDArray[np.int64], rank: int, count: int) -> list[int]:
    """The examples of a step that one of several processes takes: every one is taken once, like lengths dealt out in turn.

    Args:
        rows: Examples.
        lengths: Tokens an example, shape (n,), indexed by the values of `rows`.
        rank: Of the process, 0-based.
        count: Processes.
    """
    dealt = sorted(rows, key=lambda row: (-int(lengths[row]), row))
    turns = [dealt[begin : begin + count] for begin in range(0, len(dealt), count)]
    placed = [turn[::-1] if number % 2 and len(turn) == count else turn for number, turn in enumerate(turns)]
    return [turn[rank] for turn in placed if rank < len(turn)]


def micro_batches(rows: Sequence[int], lengths: npt.NDArray[np.int64], budget: int) -> list[list[int]]:
    """Cut the examples of a step into micro-batches of similar lengths.

    Args:
        rows: Examples.
        lengths: Tokens an example, shape (n,), indexed by the values of `rows`.
        budget: Padded tokens a micro-batch may have; an example that is longer goes alone.
    Returns:
        The same examples, longest first (so that memory runs out in the first micro-batch or not at all).
    """
    found: list[list[int]] = []
    width = 0
    for row in sorted(rows, key=lambda row: (-int(lengths[row]), row)):
        if found and (len(found[-1]) + 1) * width <= budget:
            found[-1].append(row)
        else:
            found.append([row])
            width = int(lengths[row])
    return found


def packed(rows: Sequence[int], lengths: npt.NDArray[np.int64], budget: int) -> list[list[list[int]]]:
    """Cut the examples of a step into micro-batches of lines, several short examples behind each other in one line.

    No line is longer than the longest example of the step: attention costs by the square of a line. Each example goes
    to the fullest line that still has room for it, the longest first (best fit decreasing).

    Args:
        rows: Examples.
        lengths: Tokens an example, shape (n,), indexed by the values of `rows`.
        budget: Padded tokens a micro-batch may have; a line that is longer goes alone.
    Returns:
        Micro-batches; of each its lines; of each line its examples, every one of `rows` in one of them.
    """
    lines: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of every line that has any: how much, and which; sorted
    width = max((int(lengths[row]) for row in rows), default=0)
    for row in sorted(rows, key=lambda row: (-int(lengths[row]), row)):
        size = int(lengths[row])
        at = bisect_left(room, (size, 0))
        left, line = room.pop(at) if at < len(room) else (width, len(lines))
        if line == len(lines):
            lines.append([])
        lines[line].append(row)
        if left > size:
            insort(room, (left - size, line))
    together = max(1, budget // max(1, width))
    return [lines[begin : begin + together] for begin in range(0, len(lines), together)]
