"""The trainer's bench: what is estimated is trained."""

from __future__ import annotations

from tests.finetune.train.conftest import base, bench, exact, reaped

__all__ = ["base", "bench", "exact", "reaped"]
