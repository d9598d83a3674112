"""A submission with uploads for data is one statement: it is accepted, refused and repeated as every other."""

# ruff: noqa: ASYNC110, ASYNC212  the API answers in a thread of its own, and who waits for a lock is seen by looking
from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import select, text

from app.auth import Caller
from app.db import Database
from app.jobs import checks
from app.jobs.schemas import JobCreate
from app.jobs.service import request_hash
from app.models import Event, Job
from tests.app.conftest import ROWS, Service, job_body, serving

pytestmark = pytest.mark.db

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def uploaded(service: Service) -> Iterator[str]:
    """The id of an upload of alpha's."""
    with service.http() as http:
        sent = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("train.jsonl", ROWS)})
        yield str(sent.json()["id"])


def refusal(http: httpx.Client, **fields: object) -> tuple[int, str]:
    answer = http.post(JOBS, json=job_body(**fields))
    return answer.status_code, answer.json()["error"]["code"]


async def test_what_is_answered_is_what_is_kept(http: httpx.Client, db: Database, uploaded: str) -> None:
    pairs = {"team": "a"}
    made = http.post(
        JOBS, json=job_body(training_file=uploaded, validation_file=uploaded, metadata=pairs, seed=5)
    ).json()
    assert http.get(f"{JOBS}/{made['id']}").json() == made
    assert (made["status"], made["seed"], made["metadata"]) == ("validating_files", 5, pairs)
    async with db.transaction() as session:
        events = (await session.execute(select(Event).where(Event.job_id == made["id"]).order_by(Event.seq))).scalars()
        assert [(event.seq, event.message) for event in events] == [
            (1, f"Created fine-tuning job: {made['id']}"),
            (2, f"Validating training file: {uploaded} and validation file: {uploaded}"),
        ]
        row = await session.get_one(Job, made["id"])
        assert (row.last_seq, row.fence, row.worker_id, row.result_files, row.error) == (2, 0, None, [], None)


def test_such_a_job_goes_the_short_way_and_others_do_not(service: Service, uploaded: str) -> None:
    caller = Caller("proj_alpha", "alpha", "key_alpha", frozenset({"write"}), None)

    def plain(**fields: object) -> bool:
        return checks.plain(caller, JobCreate.model_validate(job_body(**fields)), service.settings) is not None

    assert plain(training_file=uploaded)
    assert not plain()
    assert not plain(training_file=uploaded, validation_file="s3://llamaflow-data/x.jsonl")
    assert not plain(training_file=uploaded, callback_url="http://127.0.0.1:5678/")
    assert not plain(training_file=uploaded, output={"path": "s3://elsewhere/"})
    assert not plain(training_file=uploaded, model="gpt-4o")


def test_what_is_wrong_is_told_as_ever(service: Service, http: httpx.Client, uploaded: str) -> None:
    with service.http("beta") as beta:
        assert refusal(beta, training_file=uploaded) == (400, "file_not_found")
    assert refusal(http, training_file="file-nowhere") == (400, "file_not_found")
    assert refusal(http, training_file=uploaded, validation_file="file-nowhere") == (400, "file_not_found")
    assert refusal(http, training_file=uploaded, model="gpt-4o") == (400, "model_not_found")
    assert refusal(http, training_file=uploaded, output={"path": "s3://elsewhere/"}) == (400, "path_not_allowed")


async def test_twenty_at_once_with_one_key_are_one_job(service: Service, uploaded: str) -> None:
    sent = {"authorization": "Bearer lf-alpha", "idempotency-key": "uploads"}
    async with httpx.AsyncClient(base_url=service.url, headers=sent, timeout=30, trust_env=False) as http:
        posts = [http.post(JOBS, json=job_body(training_file=uploaded, suffix="once")) for _ in range(20)]
        answers = await asyncio.gather(*posts)
        other = await http.post(JOBS, json=job_body(training_file=uploaded, suffix="other"))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted("idempotent-replayed" in answer.headers for answer in answers) == [False] + [True] * 19
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")


async def test_a_retry_of_it_waits_for_the_first_try_and_finds_it(
    service: Service, db: Database, uploaded: str
) -> None:
    """The first try holds the lock that its retry takes: here a transaction holds it for both, and lets the first one go first."""
    body = job_body(training_file=uploaded, suffix="retried")
    name = f"job-body:key_alpha:{request_hash(JobCreate.model_validate(body))}"
    sent = {"authorization": "Bearer lf-alpha"}
    async with httpx.AsyncClient(base_url=service.url, headers=sent, timeout=30, trust_env=False) as http:
        async with db.transaction() as session:
            await session.execute(text("select pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
            first = asyncio.ensure_future(http.post(JOBS, json=body))
            await waiting(db, 1)
            again = asyncio.ensure_future(http.post(JOBS, json=body, headers={"x-stainless-retry-count": "1"}))
            await waiting(db, 2)
        assert (await first).json()["id"] == (await again).json()["id"]


async def waiting(db: Database, count: int) -> None:
    """Wait until so many wait for an advisory lock."""
    waiters = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    async with asyncio.timeout(20):
        while await db.first(waiters, {}) != (count,):
            await asyncio.sleep(0.02)


def test_a_key_with_enough_open_jobs_is_refused_one_more(service: Service, uploaded: str) -> None:
    with serving(service.settings.model_copy(update={"max_open_jobs": 1})) as url:
        few = Service(url, service.settings, service.s3)
        with few.http() as http:
            assert refusal(http, training_file=uploaded) == (429, "too_many_open_jobs")
