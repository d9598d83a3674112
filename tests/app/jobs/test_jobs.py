"""Jobs as the unmodified official client sees them, with answers checked strictly against its own types."""

# ruff: noqa: ASYNC212  the API answers in a thread of its own
from __future__ import annotations

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from app.db import Database
from tests.app.conftest import DATASET, MODEL, Service, job_body
from tests.app.jobs.factory import PATHS, create, move

pytestmark = pytest.mark.db

OPENAI_KEYS = {
    "id", "object", "created_at", "error", "fine_tuned_model", "finished_at", "hyperparameters", "model", "method",
    "organization_id", "result_files", "seed", "status", "trained_tokens", "training_file", "validation_file",
    "estimated_finish", "integrations", "metadata",
}  # fmt: skip
OWN_KEYS = {"progress", "technique", "callback_url", "output", "adapter", "run", "usage", "estimate", "retry_of"}


@pytest.mark.parametrize("status", [status for status in PATHS if status != "paused"])
async def test_the_clients_strict_types_take_a_job_in_every_status(client: OpenAI, db: Database, status: str) -> None:
    job_id = create(client, suffix="strict")
    await move(db, job_id, status)
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.status == status
    assert (job.error is None) == (status != "failed")
    assert (job.finished_at is None) == (status not in ("succeeded", "failed", "cancelled"))


async def test_a_paused_job_is_the_one_status_beyond_the_clients(
    http: httpx.Client, client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    await move(db, job_id, "paused")
    assert http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "paused"


def test_a_new_job_has_every_key_and_nulls_for_what_is_not_known(http: httpx.Client) -> None:
    answer = http.post("/v1/fine_tuning/jobs", json=job_body(metadata={"a": "b"}, seed="7"))
    job = answer.json()
    assert answer.status_code == 201
    assert set(job) >= OPENAI_KEYS | OWN_KEYS
    assert (job["status"], job["seed"], job["metadata"], job["model"]) == ("validating_files", 7, {"a": "b"}, MODEL)
    assert job["hyperparameters"]["n_epochs"] == "auto"
    assert [key for key in sorted(job) if job[key] is None] == sorted(
        ["adapter", "callback_url", "error", "estimate", "estimated_finish", "fine_tuned_model", "finished_at", "integrations",
         "output", "progress", "retry_of", "run", "suffix", "trained_tokens", "usage", "validation_file"]
    )  # fmt: skip


async def test_what_was_auto_is_shown_resolved_once_it_runs(client: OpenAI, db: Database) -> None:
    job_id = create(client, method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}})
    await move(db, job_id, "running")
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (3, 4)
    assert job.method is not None
    assert job.method.model_dump()["supervised"]["hyperparameters"]["n_epochs"] == 3
    assert job.model_extra is not None
    assert (job.model_extra["run"], job.model_extra["progress"]["step"]) == ({"attempt": 1, "profile": "local"}, 3)


async def test_a_succeeded_job_names_its_model_adapter_and_checkpoints(client: OpenAI, db: Database) -> None:
    job_id = create(client, suffix="Küste v2")
    await move(db, job_id, "succeeded")
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.fine_tuned_model == f"ft:{MODEL}:alpha:Küste v2:{job_id[-8:]}"
    assert (job.model_extra or {})["adapter"] == {"name": "kuste-v2", "version": 1, "promoted": True}
    checkpoint = client.fine_tuning.jobs.checkpoints.list(job_id).data[0]
    assert checkpoint.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-3"
    assert checkpoint.metrics.model_dump(exclude_none=True) == {"step": 3, "train_loss": 1.5}


async def test_stages_are_listed(http: httpx.Client, client: OpenAI, db: Database) -> None:
    job_id = create(client)
    await move(db, job_id, "running")
    (stage,) = http.get(f"/v1/fine_tuning/jobs/{job_id}/stages").json()["data"]
    assert (stage["name"], stage["status"], stage["run"], stage["attempt"]) == ("FINE_TUNE", "running", 1, 1)


def test_jobs_are_paged_newest_first_to_the_end(client: OpenAI) -> None:
    made = [create(client, metadata={"page": "me"}) for _ in range(5)]
    found = [job.id for job in client.fine_tuning.jobs.list(limit=2, metadata={"page": "me"})]
    assert found == made[::-1]
    last = client.fine_tuning.jobs.list(limit=2, metadata={"page": "me"}, after=made[0])
    assert (last.data, last.has_more) == ([], False)


def test_jobs_are_found_by_their_metadata_or_its_absence(client: OpenAI, http: httpx.Client) -> None:
    odd, none = create(client, metadata={"k ey[]": "v&=1", "b": ""}), create(client)
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"k ey[]": "v&=1", "b": ""})] == [odd]
    without = http.get("/v1/fine_tuning/jobs", params={"metadata": "null", "limit": 1000}).json()["data"]
    assert none in [job["id"] for job in without]
    assert [job["id"] for job in without if job["metadata"]] == []


def test_events_tell_the_story_newest_first_and_are_paged(client: OpenAI) -> None:
    job_id = create(client)
    client.fine_tuning.jobs.cancel(job_id)
    events = list(client.fine_tuning.jobs.list_events(job_id, limit=1))
    assert [event.message for event in reversed(events)] == [
        f"Created fine-tuning job: {job_id}",
        f"Validating training file: {DATASET}",
        "Cancel requested",
        "Fine-tuning job cancelled",
    ]


def test_a_cursor_that_is_no_row_is_refused(client: OpenAI) -> None:
    job_id, other = create(client), create(client)
    foreign = client.fine_tuning.jobs.list_events(other).data[0].id
    for after in ("ftevent-none", foreign):
        with pytest.raises(BadRequestError, match="after names no row"):
            client.fine_tuning.jobs.list_events(job_id, after=after)


def test_a_callback_host_that_does_not_resolve_is_a_warning(client: OpenAI) -> None:
    job_id = create(client, extra_body={"callback_url": "http://no-such-host.invalid/x"})
    newest = client.fine_tuning.jobs.list_events(job_id).data[0]
    assert (newest.level, "does not resolve" in newest.message) == ("warn", True)


def test_an_unchanged_job_is_a_304_only_for_those_who_ask(http: httpx.Client, client: OpenAI) -> None:
    path = f"/v1/fine_tuning/jobs/{create(client)}"
    first = http.get(path)
    assert http.get(path).status_code == 200
    same = http.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    client.fine_tuning.jobs.cancel(first.json()["id"])
    assert http.get(path, headers={"if-none-match": first.headers["etag"]}).status_code == 200


def test_what_is_not_offered_yet_says_so(http: httpx.Client) -> None:
    error = http.post("/v1/fine_tuning/sweeps", json=job_body()).json()["error"]
    assert error["code"] == "unsupported_operation"


def test_nothing_of_another_project_can_be_seen_or_touched(service: Service, client: OpenAI) -> None:
    job_id = create(client)
    event = client.fine_tuning.jobs.list_events(job_id).data[0].id
    with OpenAI(base_url=service.url + "/v1", api_key="lf-beta", max_retries=0) as beta:
        assert job_id not in [job.id for job in beta.fine_tuning.jobs.list(limit=1000)]
        for call in (
            beta.fine_tuning.jobs.retrieve,
            beta.fine_tuning.jobs.cancel,
            beta.fine_tuning.jobs.list_events,
            beta.fine_tuning.jobs.checkpoints.list,
        ):
            with pytest.raises(NotFoundError) as hidden:
                call(job_id)
            assert hidden.value.code == "job_not_found"
        with pytest.raises(BadRequestError):
            beta.fine_tuning.jobs.list(after=job_id)
        assert event
    assert client.fine_tuning.jobs.retrieve(job_id).status == "validating_files"
