"""Keeps lines of output short: a line of megabytes stops Nextflow, which shows the last lines of a task that failed.

Standard library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

WIDTH = 4000
"""Characters after which a line is broken."""

_LONG = re.compile(rf"[^\n]{{{WIDTH}}}(?=[^\n])")


class Folding:
    """A text stream that breaks long lines; in all else it is the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, breaking what is too long."""
        self._stream.write(_LONG.sub(r"\g<0>\n", text) if len(text) > WIDTH else text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def folded() -> Iterator[None]:
    """Break the long lines of standard output and error while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Folding(sys.stdout), Folding(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
