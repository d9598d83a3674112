"""LangChain's chat client, and the command line of the last client that has one, in environments of their own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from scripts import clients
from tests.conformance.conftest import Place
from tests.conformance.life import MODEL, ROWS
from tests.conformance.machine import HERE, outside

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(900)]


async def run(*words: str) -> str:
    """What a command said; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *words, env=outside(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    return out.decode()


async def test_langchain_asks_whole_and_streamed(place: Place) -> None:
    python = clients.FOLDER / "langchain" / "bin" / "python"
    said = await run(str(python), str(HERE / "chain.py"), f"{place.url}/v1", place.key, MODEL)
    assert said == "one two three\none|two|three\n"


async def test_the_command_line_uploads_creates_lists_and_cancels(place: Place, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    openai = [str(clients.FOLDER / "cli" / "bin" / "openai"), "-k", place.key, "-b", f"{place.url}/v1/", "api"]
    file = json.loads(await run(*openai, "files.create", "-f", str(tmp_path / "train.jsonl"), "-p", "fine-tune"))
    made = ["fine_tuning.jobs.create", "-m", MODEL, "-F", file["id"], "-s", "kpi", "-H", '{"n_epochs": 2}']
    job = json.loads(await run(*openai, *made))
    assert job["hyperparameters"]["n_epochs"] == 2
    listed = json.loads(await run(*openai, "fine_tuning.jobs.list", "-l", "5"))
    assert [each["id"] for each in listed["data"]] == [job["id"]]
    events = json.loads(await run(*openai, "fine_tuning.jobs.list_events", "-i", job["id"]))
    assert f"Created fine-tuning job: {job['id']}" in [each["message"] for each in events["data"]]
    await run(*openai, "fine_tuning.jobs.cancel", "-i", job["id"])
    said = await run(*openai, "chat.completions.create", "-m", MODEL, "-g", "user", "one two")
    assert "one two" in said
