"""What callbacks and endpoints can be told of. The one list: requests are checked by it, and clients are shown it."""

from __future__ import annotations

from typing import Literal, get_args

EventType = Literal[
    "fine_tuning.job.succeeded",
    "fine_tuning.job.failed",
    "fine_tuning.job.cancelled",
    "fine_tuning.job.running",
    "fine_tuning.job.checkpoint",
    "fine_tuning.job.paused",
    "adapter.promoted",
]
"""The first three are the official client's own."""

EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
DEFAULT = EVENT_TYPES[:3]
"""Those of an endpoint that names none; a job's callback is always told of them."""
