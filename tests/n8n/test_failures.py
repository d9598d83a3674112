"""Workflows 3 and 4: asking instead of being told, a smaller batch after a lack of memory, and who is alerted with which words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from app.models import Job
from tests.app.worker.services import until
from tests.n8n.conftest import Place, workflow_id

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(1800)]

TRAIN = "s3://llamaflow-data/train.jsonl"
POLL, RETRY = workflow_id("3-poll"), workflow_id("4-failure-handling")


async def test_polling_ends_right_and_asks_cheaply(place: Place, stub_tasks: Callable[..., None]) -> None:
    stub_tasks(seconds="8")
    answer = await place.call("llamaflow-poll", training_file=TRAIN, n_epochs="2")
    job = await place.job()
    assert (answer.status_code, answer.json()["model"]) == (200, job.fine_tuned_model), answer.text
    done = await place.execution(POLL)
    assert done.status == "success"
    asked = [item["statusCode"] for (item,) in done.runs["Get job"]]
    assert set(asked) == {200, 304}
    assert len(done.runs["Progress"]) == asked.count(200)


async def test_a_lack_of_memory_is_answered_by_half_the_batch(place: Place, stub_tasks: Callable[..., None]) -> None:
    stub_tasks(fault="train=out_of_memory")
    asked = asyncio.create_task(place.call("llamaflow-retry", training_file=TRAIN, batch_size="8"))
    first = await place.job()

    async def launched() -> bool:
        return (await place.world.get(first.id)).status == "running"

    await until(launched, 300)
    os.environ["LLAMAFLOW_STUB_FAULT"] = ""
    answer = await asked
    failed, second = await place.job(), await place.job(2)
    assert (failed.error or {})["code"] == "out_of_memory"
    assert (failed.spec["hyperparameters"]["batch_size"], second.spec["hyperparameters"]["batch_size"]) == (8, 4)
    assert answer.json() == {
        "ok": True,
        "job": second.id,
        "model": second.fine_tuned_model,
        "batch_size": 4,
        "tries": 2,
    }
    assert place.site.neighbours.alerts == []
    assert (await place.execution(RETRY)).status == "success"


async def test_another_failure_alerts_with_the_services_own_sentence(place: Place) -> None:
    await asyncio.to_thread(place.world.put, "empty.jsonl", b"")
    answer = await place.call("llamaflow-retry", training_file="s3://llamaflow-data/empty.jsonl")
    job = await place.job()
    error = job.error or {}
    assert (answer.status_code, answer.json()["message"], answer.json()["tries"]) == (502, error["message"], 1)
    assert place.site.neighbours.alerts == [f"LlamaFlow: {error['message']} ({job.id})"]


async def test_a_refusal_alerts_too(place: Place) -> None:
    answer = await place.call("llamaflow-retry", training_file="s3://elsewhere/train.jsonl")
    assert (answer.status_code, answer.json()["code"]) == (400, "path_not_allowed"), answer.text
    assert place.site.neighbours.alerts == [f"LlamaFlow: {answer.json()['message']}"]
    assert await place.world.rows(Job) == []
