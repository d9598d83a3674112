"""Undoes gzip and zstd in a stream: bounded in what it holds, and not fooled by data that grows without end."""

from __future__ import annotations

import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

CHUNK_BYTES = 1 << 20
EXPANSION_FREE = 256 << 20
EXPANSION_LIMIT = 200
"""Data may grow 200-fold once more than 256 MiB came out: rows of text do not, a bomb does."""

WINDOW_LOG = 27
"""zstd frames that need more than 128 MiB of memory are refused, as the zstd program does."""


class Damaged(Exception):
    """The data cannot be unpacked; the message says why."""


class Unpacker(ABC):
    """Unpacks one gzip member or zstd frame.

    Args:
        undo: The library's decompressor of it.
    """

    def __init__(self, undo: Any) -> None:
        self._undo = undo

    @property
    def eof(self) -> bool:
        """Whether its end was reached."""
        return bool(self._undo.eof)

    @property
    def unused_data(self) -> bytes:
        """What was fed after its end."""
        return bytes(self._undo.unused_data)

    @abstractmethod
    def plain(self, data: bytes) -> Iterator[bytes]:
        """Feed `data`; what it unpacks to, at most CHUNK_BYTES at a time.

        Raises:
            Damaged: While iterating.
        """


class Gzip(Unpacker):
    """One member of a gzip file."""

    def __init__(self) -> None:
        super().__init__(zlib.decompressobj(wbits=31))

    def plain(self, data: bytes) -> Iterator[bytes]:
        """Feed `data`; what it unpacks to."""
        try:
            while made := self._undo.decompress(data, CHUNK_BYTES):
                yield made
                data = self._undo.unconsumed_tail
        except zlib.error as problem:
            raise Damaged(f"the gzip data is damaged ({problem})") from None


class Zstd(Unpacker):
    """One frame of a zstd file."""

    def __init__(self) -> None:
        super().__init__(zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG}))

    def plain(self, data: bytes) -> Iterator[bytes]:
        """Feed `data`; what it unpacks to."""
        try:
            while made := self._undo.decompress(data, CHUNK_BYTES):
                yield made
                if self.eof:
                    return
                data = b""
        except zstd.ZstdError as problem:
            raise Damaged(f"the zstd data is damaged ({problem})") from None


PACKINGS: tuple[tuple[bytes, Callable[[], Unpacker], str], ...] = (
    (b"\x1f\x8b", Gzip, "gzip"),
    (b"\x28\xb5\x2f\xfd", Zstd, "zstd"),
)
"""How packed data begins, what undoes it, and its name."""


def unpacked(make: Callable[[], Unpacker], name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The plain bytes of packed chunks; a file may have several members or frames.

    Args:
        make: Gzip or Zstd.
        name: For sentences.
        chunks: The packed bytes.
    Raises:
        Damaged: While iterating.
    """
    unpacker, taken, given = make(), 0, 0
    for chunk in chunks:
        rest = chunk
        while rest:
            if unpacker.eof:
                unpacker = make()
            taken += len(rest)
            for plain in unpacker.plain(rest):
                given += len(plain)
                if given > EXPANSION_FREE and given > EXPANSION_LIMIT * taken:
                    raise Damaged(f"the {name} data grows more than {EXPANSION_LIMIT}-fold; send it unpacked")
                yield plain
            rest = unpacker.unused_data if unpacker.eof else b""
            taken -= len(rest)
    if not unpacker.eof:
        raise Damaged(f"the {name} data ends too early")
