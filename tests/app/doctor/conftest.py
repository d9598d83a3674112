"""The worker's fixtures, from services.py."""

from __future__ import annotations

from tests.app.worker.services import database_url, s3_server, settings, stored, stub_tasks, world

__all__ = ["database_url", "s3_server", "settings", "stored", "stub_tasks", "world"]
