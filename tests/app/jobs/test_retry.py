"""A failed or cancelled job retried: a new job of the same body, checked anew; the old one stays as it is."""

# ruff: noqa: ASYNC212  the API answers in a thread of its own
from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from app.db import Database
from tests.app.conftest import Service, job_body
from tests.app.jobs.factory import create, move

pytestmark = pytest.mark.db

JOBS = "/v1/fine_tuning/jobs"
ASKED: dict[str, Any] = {
    "seed": 7,
    "suffix": "again",
    "metadata": {"a": "b"},
    "callback_url": "http://127.0.0.1:5678/hook",
    "callback_events": ["fine_tuning.job.running"],
    "hyperparameters": {"n_epochs": 2},
    "execution": {"max_runtime_seconds": 60, "priority": 3},
}


async def ended(http: httpx.Client, db: Database, status: str, **fields: Any) -> dict[str, Any]:
    """A job that has come to its end."""
    made = http.post(JOBS, json=job_body(**fields)).json()
    await move(db, made["id"], status)
    return http.get(f"{JOBS}/{made['id']}").json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_a_retry_is_a_new_job_of_the_same_body(http: httpx.Client, db: Database, status: str) -> None:
    old = await ended(http, db, status, **ASKED)
    answer = http.post(f"{JOBS}/{old['id']}/retry")
    new = answer.json()
    assert (answer.status_code, new["status"], new["retry_of"]) == (201, "validating_files", old["id"])
    own = {"id", "created_at", "status", "error", "finished_at", "progress", "run", "retry_of"}
    same = {name for name in new if new[name] == old[name]}
    assert set(new) - same <= own
    assert http.get(f"{JOBS}/{old['id']}").json() == old
    histories = [
        [row["message"] for row in http.get(f"{JOBS}/{job}/events").json()["data"]] for job in (old["id"], new["id"])
    ]
    assert f"Retried as {new['id']}" in histories[0]
    assert f"Retry of {old['id']}" in histories[1]


@pytest.mark.parametrize("status", ["validating_files", "queued", "running", "paused", "succeeded"])
async def test_only_what_failed_or_was_cancelled_is_retried(
    http: httpx.Client, client: OpenAI, db: Database, status: str
) -> None:
    job_id = create(client)
    await move(db, job_id, status)
    answer = http.post(f"{JOBS}/{job_id}/retry")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "job_not_retryable")


async def test_the_same_retry_sent_twice_makes_one_job(http: httpx.Client, db: Database) -> None:
    old = await ended(http, db, "failed")
    key = {"idempotency-key": f"retry {old['id']}"}
    first, again = (http.post(f"{JOBS}/{old['id']}/retry", headers=key) for _ in range(2))
    assert (again.json()["id"], again.headers["idempotent-replayed"]) == (first.json()["id"], "true")
    lost = http.post(f"{JOBS}/{old['id']}/retry", headers={"x-stainless-retry-count": "1"})
    assert lost.json()["id"] == first.json()["id"]
    assert http.post(f"{JOBS}/{old['id']}/retry").json()["id"] != first.json()["id"]


async def test_a_key_that_made_the_old_job_does_not_answer_for_its_retry(http: httpx.Client, db: Database) -> None:
    key = {"idempotency-key": "made and retried"}
    old = http.post(JOBS, json=job_body(), headers=key).json()
    await move(db, old["id"], "failed")
    refused = http.post(f"{JOBS}/{old['id']}/retry", headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")


async def test_what_is_gone_meanwhile_is_found_before_the_retry_is_accepted(
    http: httpx.Client, db: Database, service: Service
) -> None:
    service.s3.put_object(Bucket="llamaflow-data", Key="api/once.jsonl", Body=b"{}")
    old = await ended(http, db, "failed", training_file="s3://llamaflow-data/api/once.jsonl")
    service.s3.delete_object(Bucket="llamaflow-data", Key="api/once.jsonl")
    refused = http.post(f"{JOBS}/{old['id']}/retry")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "file_not_found")


async def test_a_retry_can_be_retried(http: httpx.Client, db: Database) -> None:
    old = await ended(http, db, "failed")
    second = http.post(f"{JOBS}/{old['id']}/retry").json()["id"]
    await move(db, second, "cancelled")
    assert http.post(f"{JOBS}/{second}/retry").json()["retry_of"] == second
