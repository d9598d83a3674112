"""`llamaflow jobs pause|resume|cancel|retry` say what the service says."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import pytest
from openai import OpenAI

from app.db import Database
from tests.app.conftest import BUCKET, DATASET, MODEL, Service
from tests.app.jobs.factory import create, move, own

pytestmark = pytest.mark.db

Commands = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def llamaflow(service: Service) -> Commands:
    """The command with alpha's key; its exit status and all it said."""
    env = os.environ | {"LLAMAFLOW_URL": service.url, "LLAMAFLOW_API_KEY": "lf-alpha"}

    async def run(*words: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", "jobs", *words,
            env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()

    return run


async def test_what_is_done_and_what_is_only_asked_for_yet_is_said(
    client: OpenAI, db: Database, llamaflow: Commands
) -> None:
    waiting, running = create(client), create(client)
    await move(db, waiting, "queued")
    await move(db, running, "running")
    await own(db, running)
    said = [(await llamaflow(action, waiting))[1] for action in ("pause", "resume", "cancel")]
    assert said == [f"{waiting}: paused\n", f"{waiting}: queued\n", f"{waiting}: cancelled\n"]
    said = [(await llamaflow(action, running))[1] for action in ("pause", "cancel")]
    assert said == [f"{running}: running, pause requested\n", f"{running}: running, cancel requested\n"]


async def test_what_a_job_would_take_is_said_and_nothing_is_created(
    client: OpenAI, service: Service, llamaflow: Commands
) -> None:
    before = client.fine_tuning.jobs.list(limit=1).data
    asked = ("create", "--model", MODEL, "--set", "hyperparameters.n_epochs=2", "--set", "hyperparameters.batch_size=4")
    status, said = await llamaflow(*asked, "--training-file", DATASET, "--estimate")
    assert status == 0
    assert said.startswith("6 steps. Expected: ")
    service.s3.put_object(Bucket=BUCKET, Key="estimate/broken.jsonl", Body=b"no json\n")
    status, said = await llamaflow(*asked, "--training-file", f"s3://{BUCKET}/estimate/broken.jsonl", "--estimate")
    assert status == 1
    assert "line 1: not JSON" in said
    assert client.fine_tuning.jobs.list(limit=1).data == before


async def test_a_failed_job_is_retried_by_a_new_one_and_no_other_is(
    client: OpenAI, db: Database, llamaflow: Commands
) -> None:
    job_id, well = create(client), create(client)
    await move(db, job_id, "failed")
    await move(db, well, "succeeded")
    status, new_id = await llamaflow("retry", job_id)
    assert (status, client.fine_tuning.jobs.retrieve(new_id.strip()).to_dict()["retry_of"]) == (0, job_id)
    status, refused = await llamaflow("retry", well)
    assert (status, "only a job that failed or was cancelled can be retried" in refused) == (1, True)
