"""Ranges: a low and a high bound, both inclusive."""

from __future__ import annotations

import math
from collections.abc import Iterable

Range = tuple[float, float]
Whole = tuple[int, int]


def exactly(value: float) -> Range:
    """A range of one value."""
    return value, value


def times(one: Range, other: Range) -> Range:
    """Product of two ranges of values that are not negative."""
    return one[0] * other[0], one[1] * other[1]


def plus(*ranges: Range) -> Range:
    """Sum."""
    return sum(low for low, _ in ranges), sum(high for _, high in ranges)


def spread(values: Iterable[float], margin: float) -> Range:
    """From the smallest value to the largest, each moved outwards by the factor 1 + `margin`."""
    known = list(values)
    return min(known) / (1 + margin), max(known) * (1 + margin)


def whole(range_: Range) -> Whole:
    """The range in whole numbers, rounded outwards."""
    return math.floor(range_[0]), math.ceil(range_[1])


def rounded(range_: Range, digits: int = 3) -> Range:
    """The range rounded outwards to so many significant digits: more would pretend to a knowledge nobody has."""
    return _significant(range_[0], digits, math.floor), _significant(range_[1], digits, math.ceil)


def _significant(value: float, digits: int, toward: object) -> float:
    if value == 0:
        return 0.0
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(abs(value))))
    moved = toward(value * scale) / scale  # type: ignore[operator]  # math.floor or math.ceil
    return float(moved)
