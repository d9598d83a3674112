"""How often: requests a key, unknown keys an address, uploads and streams at once. Kept in memory, so each API process counts for itself.

Knows no HTTP and no database.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from app.errors import TooMany
from app.settings import Settings

T = TypeVar("T")

BURST_SECONDS = 2.0
"""A bucket holds what comes in so many seconds."""
WINDOW = 60.0
KEPT = 10_000
"""Keys and addresses remembered; beyond, the one seen longest ago is forgotten."""
PROVEN_SECONDS = 3600.0


class Rates:
    """What each key and each address did lately.

    Args:
        settings: The limits.
        clock: Seconds that only grow.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._proven: OrderedDict[str, float] = OrderedDict()
        self._uploads: dict[str, int] = {}
        self._streams: dict[str, int] = {}
        self._estimates: dict[str, int] = {}

    def admit(self, key_id: str) -> None:
        """Count a request of a key.

        Raises:
            TooMany: `rate_limit_exceeded`.
        """
        rate, now = self._settings.rate_limit, self._clock()
        most = max(1.0, rate * BURST_SECONDS)
        level, at = self._buckets.get(key_id, (most, now))
        level = min(most, level + (now - at) * rate)
        if level < 1:
            raise TooMany(
                f"This API key may make {rate:g} requests a second (LLAMAFLOW_RATE_LIMIT). Try again in a moment.",
                code="rate_limit_exceeded",
                retry_after=math.ceil((1 - level) / rate),
            )
        _keep(self._buckets, key_id, (level - 1, now))

    def may_try(self, address: str, hashed: str) -> None:
        """Whether a key is looked up at all: one that was good lately always is, others while their address guesses little.

        Args:
            address: Of the client.
            hashed: What is kept of the key.
        Raises:
            TooMany: `too_many_unknown_keys`.
        """
        now = self._clock()
        if now - self._proven.get(hashed, -math.inf) < PROVEN_SECONDS:
            return
        failed = self._failures.get(address)
        while failed and now - failed[0] >= WINDOW:
            failed.popleft()
        if failed and len(failed) >= self._settings.auth_failures:
            raise TooMany(
                f"There were {len(failed)} unknown API keys from {address} within a minute (LLAMAFLOW_AUTH_FAILURES). "
                "Check the key, and try again later.",
                code="too_many_unknown_keys",
                retry_after=math.ceil(WINDOW - (now - failed[0])),
            )

    def failed(self, address: str) -> None:
        """An address showed a key that is not known."""
        failures = self._failures.get(address, deque(maxlen=self._settings.auth_failures))
        failures.append(self._clock())
        _keep(self._failures, address, failures)

    def proved(self, hashed: str) -> None:
        """A key is good."""
        _keep(self._proven, hashed, self._clock())

    @contextmanager
    def uploading(self, key_id: str) -> Iterator[None]:
        """Hold a place for an upload.

        Raises:
            TooMany: `too_many_uploads`.
        """
        most = self._settings.max_uploads
        refused = TooMany(
            f"This API key has {self._uploads.get(key_id, 0)} uploads under way; {most} at once are allowed "
            "(LLAMAFLOW_MAX_UPLOADS).",
            code="too_many_uploads",
            retry_after=5,
        )
        with _place(self._uploads, key_id, most, refused):
            yield

    @contextmanager
    def estimating(self, key_id: str) -> Iterator[None]:
        """Hold a place for an estimate.

        Raises:
            TooMany: `too_many_estimates`.
        """
        most = self._settings.max_estimates
        refused = TooMany(
            f"This API key has {most} estimates under way; more at once are not allowed (LLAMAFLOW_MAX_ESTIMATES).",
            code="too_many_estimates",
            retry_after=5,
        )
        with _place(self._estimates, key_id, most, refused):
            yield

    @contextmanager
    def streaming(self, key_id: str) -> Iterator[None]:
        """Hold a place for a live stream.

        Raises:
            TooMany: `too_many_streams`, of the key or of all of this process.
        """
        most, of_all = self._settings.max_streams, self._settings.max_streams_in_all
        if sum(self._streams.values()) >= of_all:
            raise TooMany(
                f"The service has {of_all} live streams (LLAMAFLOW_MAX_STREAMS_IN_ALL). Try again later, or poll.",
                code="too_many_streams",
                retry_after=30,
            )
        refused = TooMany(
            f"This API key has {most} live streams; more are not allowed (LLAMAFLOW_MAX_STREAMS).",
            code="too_many_streams",
            retry_after=30,
        )
        with _place(self._streams, key_id, most, refused):
            yield


@contextmanager
def _place(taken: dict[str, int], key_id: str, most: int, refused: TooMany) -> Iterator[None]:
    if taken.get(key_id, 0) >= most:
        raise refused
    taken[key_id] = taken.get(key_id, 0) + 1
    try:
        yield
    finally:
        left = taken.pop(key_id) - 1
        if left:
            taken[key_id] = left


def _keep(kept: OrderedDict[str, T], name: str, value: T) -> None:
    kept[name] = value
    kept.move_to_end(name)
    if len(kept) > KEPT:
        kept.popitem(last=False)
