"""The same request many times, and many requests at once: as many jobs as were meant, in fair order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
from openai import OpenAI

from app.auth import key_hash
from app.models import ApiKey, Job
from app.worker import claim
from app.worker.claim import Claimant
from tests.app.conftest import MODEL, serving
from tests.app.worker.services import BUCKET, World
from tests.fault.cable import cabled

pytestmark = pytest.mark.fault

ANN = Claimant("worker-ann", 600.0, "here", "boot", "ns", ["local"], 600.0)
BODY = {"model": MODEL, "training_file": f"s3://{BUCKET}/train.jsonl"}


@pytest_asyncio.fixture
async def api(stored: World) -> AsyncIterator[Callable[[str], httpx.AsyncClient]]:
    """Clients of the served API, by project; the key of a project is lf-<its name>."""
    for name in ("alpha", "beta", "gamma"):
        project = await stored.project(name)
        async with stored.database.transaction() as db:
            key = ApiKey(id=f"key-{name}", project_id=project, hash=key_hash(f"lf-{name}"), scopes=["read", "write"])
            db.add(key)
    with serving(stored.settings) as url:

        def client(project: str) -> httpx.AsyncClient:
            return httpx.AsyncClient(
                base_url=url, headers={"authorization": f"Bearer lf-{project}"}, timeout=120, trust_env=False
            )

        yield client


async def post(http: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> httpx.Response:
    return await http.post("/v1/fine_tuning/jobs", json=body, headers=headers)


async def test_two_hundred_equal_posts_with_one_idempotency_key_make_one_job(
    stored: World, api: Callable[[str], httpx.AsyncClient]
) -> None:
    async with api("alpha") as http:
        key = {"Idempotency-Key": "the-same-one"}
        answers = await asyncio.gather(*(post(http, BODY, **key) for _ in range(200)))
    assert Counter(answer.status_code // 100 for answer in answers) == {2: 200}
    (job,) = await stored.rows(Job)
    assert {answer.json()["id"] for answer in answers} == {job.id}


async def test_the_official_client_makes_one_job_although_the_first_answer_was_lost(
    stored: World, api: Callable[[str], httpx.AsyncClient]
) -> None:
    async with api("alpha") as http:
        port = urlsplit(str(http.base_url)).port
    lost: list[bytes] = []

    def first(sent: bytes) -> bool:
        if b"training_file" in sent and not lost:
            lost.append(sent)
            return True
        return False

    with (
        cabled(port, first) as cable,
        OpenAI(base_url=f"http://127.0.0.1:{cable.port}/v1", api_key="lf-alpha") as client,
    ):
        made = await asyncio.to_thread(client.fine_tuning.jobs.create, **BODY)
        assert cable.cuts >= 1
    assert len(lost) == 1
    assert [job.id for job in await stored.rows(Job)] == [made.id]


@pytest.mark.slow
async def test_five_hundred_different_posts_are_five_hundred_jobs_claimed_in_turn(
    stored: World, api: Callable[[str], httpx.AsyncClient]
) -> None:
    counts = {"alpha": 400, "beta": 80, "gamma": 20}

    async def submit(project: str, count: int) -> list[str]:
        async with api(project) as http:
            answers = [await post(http, BODY | {"suffix": f"number-{number}"}) for number in range(count)]
        return [answer.json()["id"] for answer in answers]

    made = await asyncio.gather(*(submit(project, count) for project, count in counts.items()))
    whose = {job: project for project, ids in zip(counts, made, strict=True) for job in ids}
    assert len(whose) == 500
    order = []
    async with stored.database.transaction() as db:
        while (taken := await claim.claim_validation(db, ANN)) is not None:
            order.append(whose[taken.job_id])
    assert Counter(order) == counts
    assert Counter(order[:60]) == {"alpha": 20, "beta": 20, "gamma": 20}
    assert Counter(order[60:180]) == {"alpha": 60, "beta": 60}
