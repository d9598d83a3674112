"""Fixtures of the fault tier: those of the worker."""

from __future__ import annotations

from tests.app.worker.services import database_url, s3_server, settings, stored, stub_tasks, world

__all__ = ["database_url", "s3_server", "settings", "stored", "stub_tasks", "world"]
