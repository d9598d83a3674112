"""The trainer's bench: evaluations are made of what it trained."""

from __future__ import annotations

from tests.finetune.train.conftest import base, bench, exact

__all__ = ["base", "bench", "exact"]
