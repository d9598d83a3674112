"""`llamaflow feedback …` and `llamaflow loops …` against the service."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import pytest
from click.testing import CliRunner

from app.db import Database
from app.feedback.cli import feedback
from app.loops.cli import loops
from tests.app.conftest import Service
from tests.app.feedback.conftest import KEEPING, Api, Ask, api, ask, peer, project, trained

__all__ = ["api", "ask", "peer", "project"]
pytestmark = pytest.mark.db


def said(api: Api, command: click.Group, *words: str, status: int = 0) -> str:
    """What a command prints."""
    env = {"LLAMAFLOW_URL": str(api.base_url), "LLAMAFLOW_API_KEY": KEEPING, "COLUMNS": "200"}
    with pytest.MonkeyPatch.context() as patch:
        from app.settings import get_settings

        for name, value in env.items():
            patch.setenv(name, value)
        get_settings.cache_clear()
        found: Any = CliRunner().invoke(command, words, catch_exceptions=False)
        get_settings.cache_clear()
    assert found.exit_code == status, found.output
    lines = str(found.output).splitlines(keepends=True)
    return "".join(line for line in lines if "[info " not in line)  # the service logs in this process


async def test_answers_are_rated_and_a_loop_is_made_by_commands(
    service: Service, db: Database, api: Api, ask: Ask
) -> None:
    name = "loop-cli"
    await trained(service, db, api, name)
    completion = await asyncio.to_thread(ask, name, "What is churn?", "wrong")
    told = await asyncio.to_thread(said, api, feedback, "give", completion, "--correction", "Lost customers")
    assert told.endswith(f": bad, version 1 of {name}\n")
    refused = await asyncio.to_thread(said, api, feedback, "give", completion, status=1)
    assert "There is nothing said" in refused
    exported = await asyncio.to_thread(said, api, feedback, "export", name)
    assert exported.startswith("1 examples, 0 left out: file-")
    made = await asyncio.to_thread(said, api, loops, "create", name, "--every", "7d", "--metric", "exact_match")
    loop = made.split()[0]
    assert made == f"{loop} of {name}: active\n"
    shown = api.get(f"/v1/loops/{loop}").json()
    assert (shown["every"], shown["gate"]["better_than"]) == (7 * 86400, "current")
    assert (await asyncio.to_thread(said, api, loops, "pause", loop)).endswith(": paused\n")
    assert (await asyncio.to_thread(said, api, loops, "resume", loop)).endswith(": active\n")
    assert await asyncio.to_thread(said, api, loops, "delete", loop) == f"{loop} is deleted.\n"
    assert "no loop" in await asyncio.to_thread(said, api, loops, "get", loop, status=1)
