"""The same request makes one job, however often and however close together it comes."""

# ruff: noqa: ASYNC212  the API answers in a thread of its own
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import func, select, update

from app.db import Database
from app.models import Event, Job
from tests.app.conftest import Service, job_body, serving

pytestmark = pytest.mark.db

JOBS = "/v1/fine_tuning/jobs"


async def post_at_once(service: Service, times: int, body: dict[str, object], **headers: str) -> list[httpx.Response]:
    sent = {"authorization": "Bearer lf-alpha", **headers}
    limits = httpx.Limits(max_connections=times)
    async with httpx.AsyncClient(
        base_url=service.url, headers=sent, limits=limits, timeout=30, trust_env=False
    ) as http:
        return await asyncio.gather(*(http.post(JOBS, json=body) for _ in range(times)))


async def test_twenty_equal_posts_with_one_key_make_one_job(service: Service, db: Database) -> None:
    answers = await post_at_once(service, 20, job_body(suffix="twenty"), **{"idempotency-key": "twenty"})
    assert {answer.status_code for answer in answers} == {201}
    (job_id,) = {answer.json()["id"] for answer in answers}
    assert sorted("idempotent-replayed" in answer.headers for answer in answers) == [False] + [True] * 19
    async with db.transaction() as session:
        assert (await session.execute(select(func.count()).where(Event.job_id == job_id))).scalar_one() == 2


async def test_twenty_equal_posts_without_a_key_are_twenty_jobs(service: Service) -> None:
    answers = await post_at_once(service, 20, job_body(suffix="many"))
    assert len({answer.json()["id"] for answer in answers}) == 20


async def test_a_retry_that_comes_while_the_first_try_is_still_checked_makes_no_second_job(service: Service) -> None:
    async with slow_s3(service.settings.s3_endpoint or "") as (endpoint, asked, go):
        with serving(service.settings.model_copy(update={"s3_endpoint": endpoint})) as url:
            slow = Service(url, service.settings, service.s3)
            first = asyncio.ensure_future(post_at_once(slow, 1, job_body(suffix="slow")))
            await asyncio.wait_for(asked.wait(), 10)
            again = asyncio.ensure_future(
                post_at_once(slow, 4, job_body(suffix="slow"), **{"x-stainless-retry-count": "1"})
            )
            go.set()
            answers = await first + await again
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1


@asynccontextmanager
async def slow_s3(endpoint: str) -> AsyncIterator[tuple[str, asyncio.Event, asyncio.Event]]:
    """A way to S3 that says when it is asked, and passes nothing on before it is let go."""
    asked, go = asyncio.Event(), asyncio.Event()
    real = urlsplit(endpoint)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go.wait()
        to_reader, to_writer = await asyncio.open_connection(real.hostname, real.port)
        await asyncio.gather(pipe(reader, to_writer), pipe(to_reader, writer))

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked, go
    server.close()


def test_a_retry_with_another_body_or_key_is_another_job(service: Service) -> None:
    retry = {"x-stainless-retry-count": "2"}
    with service.http() as alpha, service.http("beta") as beta:
        one = alpha.post(JOBS, json=job_body(suffix="r")).json()["id"]
        other_body = alpha.post(JOBS, json=job_body(suffix="r", seed=1), headers=retry).json()["id"]
        other_key = beta.post(JOBS, json=job_body(suffix="r"), headers=retry).json()["id"]
        same = alpha.post(JOBS, json={**job_body(suffix="r"), "seed": None}, headers=retry).json()["id"]
    assert len({one, other_body, other_key}) == 3
    assert same == one


async def test_a_retry_after_ten_minutes_is_a_new_job(http: httpx.Client, db: Database) -> None:
    old = http.post(JOBS, json=job_body(suffix="old")).json()["id"]
    await age(db, old, timedelta(minutes=11))
    assert http.post(JOBS, json=job_body(suffix="old"), headers={"x-stainless-retry-count": "1"}).json()["id"] != old


def test_a_key_with_another_body_is_a_conflict_that_is_not_retried(http: httpx.Client) -> None:
    key = {"idempotency-key": "conflict"}
    first = http.post(JOBS, json=job_body(), headers=key).json()["id"]
    refused = http.post(JOBS, json=job_body(seed=2), headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert refused.headers["x-should-retry"] == "false"
    assert first in refused.json()["error"]["message"]


def test_a_key_belongs_to_its_project(service: Service) -> None:
    with service.http("alpha") as alpha, service.http("beta") as beta:
        made = {
            http.post(JOBS, json=job_body(), headers={"idempotency-key": "shared"}).json()["id"]
            for http in (alpha, beta)
        }
    assert len(made) == 2


def test_a_refused_request_is_not_remembered(http: httpx.Client) -> None:
    key = {"idempotency-key": "mended"}
    assert http.post(JOBS, json=job_body(seed=-1), headers=key).status_code == 400
    assert http.post(JOBS, json=job_body(), headers=key).status_code == 201


async def test_a_key_is_free_again_after_a_day(http: httpx.Client, db: Database) -> None:
    key = {"idempotency-key": "yesterday"}
    old = http.post(JOBS, json=job_body(), headers=key).json()["id"]
    await age(db, old, timedelta(hours=25))
    new = http.post(JOBS, json=job_body(seed=3), headers=key)
    assert new.status_code == 201
    assert new.json()["id"] != old


async def age(db: Database, job_id: str, by: timedelta) -> None:
    async with db.transaction() as session:
        await session.execute(update(Job).where(Job.id == job_id).values(created_at=Job.created_at - by))
