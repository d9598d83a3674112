"""Cancel, pause and resume as clients ask for them, in every status a job can have."""

from __future__ import annotations

import httpx
import pytest
from openai import BadRequestError, OpenAI

from app.db import Database
from tests.app.conftest import Service
from tests.app.jobs.factory import create, move, own, status_of

pytestmark = pytest.mark.db


def ask(http: httpx.Client, job_id: str, action: str) -> httpx.Response:
    return http.post(f"/v1/fine_tuning/jobs/{job_id}/{action}")


def told(client: OpenAI, job_id: str) -> list[str]:
    """What the job's events say, oldest first."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


@pytest.mark.parametrize("status", ["validating_files", "queued", "paused"])
async def test_a_job_that_nobody_owns_is_cancelled_at_once(
    http: httpx.Client, client: OpenAI, db: Database, status: str
) -> None:
    job_id = create(client)
    await move(db, job_id, status)
    first, again = (ask(http, job_id, "cancel") for _ in range(2))
    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert again.json() == first.json()
    assert told(client, job_id)[-2:] == ["Cancel requested", "Fine-tuning job cancelled"]


async def test_a_paused_job_that_is_cancelled_leaves_no_object(
    http: httpx.Client, client: OpenAI, db: Database, service: Service
) -> None:
    job_id, other = create(client), create(client)
    await move(db, job_id, "paused")
    for key in (f"model/{job_id}/adapter/half", f"model/{job_id}/x", f"model/{other}/kept"):
        service.s3.put_object(Bucket="llamaflow-data", Key=key, Body=b"x")
    assert ask(http, job_id, "cancel").json()["status"] == "cancelled"
    assert "Contents" not in service.s3.list_objects_v2(Bucket="llamaflow-data", Prefix=f"model/{job_id}/")
    assert "Contents" in service.s3.list_objects_v2(Bucket="llamaflow-data", Prefix=f"model/{other}/")


@pytest.mark.parametrize("status", ["validating_files", "queued", "running"])
async def test_a_job_that_a_worker_owns_is_asked_to_end(
    http: httpx.Client, client: OpenAI, db: Database, status: str
) -> None:
    job_id = create(client)
    await move(db, job_id, status)
    await own(db, job_id)
    for _ in range(2):
        assert client.fine_tuning.jobs.cancel(job_id).status == status
    assert told(client, job_id).count("Cancel requested") == 1
    assert await status_of(db, job_id) == status
    refused = [ask(http, job_id, action).json()["error"]["code"] for action in ("pause", "resume")]
    assert refused == ["job_not_pausable", "job_not_resumable"]


@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_a_job_that_has_ended_cannot_be_cancelled(client: OpenAI, db: Database, status: str) -> None:
    job_id = create(client)
    await move(db, job_id, status)
    with pytest.raises(BadRequestError) as refused:
        client.fine_tuning.jobs.cancel(job_id)
    assert refused.value.code == "job_not_cancellable"


async def test_a_queued_job_that_nobody_owns_is_paused_at_once_and_resumed(
    http: httpx.Client, client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    await move(db, job_id, "queued")
    first, again = (ask(http, job_id, "pause") for _ in range(2))
    assert (first.status_code, first.json()["status"], again.json()) == (200, "paused", first.json())
    assert [ask(http, job_id, "resume").json()["status"] for _ in range(2)] == ["queued", "queued"]
    assert told(client, job_id)[-3:] == [
        "Pause requested",
        "Fine-tuning job paused",
        "Fine-tuning job resumed, moving job to queued state",
    ]


@pytest.mark.parametrize("status", ["validating_files", "queued", "running"])
async def test_a_pause_that_is_not_settled_yet_is_kept_and_can_be_withdrawn(
    http: httpx.Client, client: OpenAI, db: Database, status: str
) -> None:
    job_id = create(client)
    await move(db, job_id, status)
    await own(db, job_id)
    before = told(client, job_id)
    asked = [ask(http, job_id, action) for action in ("pause", "pause", "resume", "resume")]
    assert [(answer.status_code, answer.json()["status"]) for answer in asked] == [(200, status)] * 4
    assert told(client, job_id) == [*before, "Pause requested", "Pause withdrawn"]


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
async def test_a_job_that_has_ended_is_neither_paused_nor_resumed(
    http: httpx.Client, client: OpenAI, db: Database, status: str
) -> None:
    job_id = create(client)
    await move(db, job_id, status)
    for action, code in (("pause", "job_not_pausable"), ("resume", "job_not_resumable")):
        answer = ask(http, job_id, action)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert ("retry" in ask(http, job_id, "resume").json()["error"]["message"]) == (status != "succeeded")


@pytest.mark.parametrize("action", ["cancel", "pause", "resume", "retry"])
def test_a_job_of_another_project_is_not_there_to_be_asked(service: Service, client: OpenAI, action: str) -> None:
    job_id = create(client)
    with service.http("beta") as beta, service.http("gamma") as gamma:
        assert ask(beta, job_id, action).json()["error"]["code"] == "job_not_found"
        assert ask(gamma, job_id, action).status_code == 403
