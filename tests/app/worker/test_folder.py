"""What is put into a job's folder before a launch."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from app.worker import folder
from tests.app.worker.services import World

pytestmark = pytest.mark.db


async def test_while_another_version_is_being_installed_jobs_are_prepared_by_the_one_that_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await world.get(await world.job(await world.project(), status="queued"))
    running = importlib.metadata.version("llamaflow")

    def gone(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)
    home = folder.of(world.settings, job.id)
    folder.prepare(home, world.settings, job)
    assert json.loads((home.steps / "upload.json").read_text())["code_version"] == running
