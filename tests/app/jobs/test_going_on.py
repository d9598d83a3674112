"""A job whose model is one of the project's own: its base is trained, from the adapter's weights."""

# ruff: noqa: ASYNC212  the API answers in a thread of its own
from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
import pytest
from openai import OpenAI

from app.adapters.service import register_version
from app.db import Database
from app.jobs import lifecycle
from app.models import Job
from tests.app.conftest import BUCKET, MODEL, Service, job_body
from tests.app.jobs.factory import BASE, create, move
from tests.app.worker.test_settle import manifest

pytestmark = pytest.mark.db


async def base_of(db: Database, job_id: str) -> dict[str, Any]:
    """What a job trains on, as its step files will have it."""
    async with db.transaction() as session:
        return dict((await session.get_one(Job, job_id)).base)


async def trained(client: OpenAI, db: Database, **fields: Any) -> tuple[str, str]:
    """A job that has succeeded, and its model."""
    job_id = create(client, **fields)
    await move(db, job_id, "succeeded")
    return job_id, client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model or ""


@pytest.mark.parametrize("by", ["ft", "name"])
async def test_an_ft_model_or_an_adapters_name_is_gone_on_from(
    client: OpenAI, http: httpx.Client, db: Database, by: str
) -> None:
    first, model = await trained(client, db, suffix=f"on-{by}")
    answer = http.post("/v1/fine_tuning/jobs", json=job_body(model=model if by == "ft" else f"on-{by}"))
    assert answer.status_code == 201, answer.text
    base = await base_of(db, answer.json()["id"])
    prefix = f"s3://llamaflow-data/model/{first}/"
    assert base["parent"] == {
        "id": model,
        "uri": f"{prefix}adapter/",
        "manifest_uri": f"{prefix}manifest.json",
        "manifest_sha256": "d" * 64,
    }
    assert (base["id"], base["kind"], base["revision"]) == (MODEL, BASE["kind"], BASE["revision"])


async def test_the_new_model_is_named_by_the_base_and_is_the_names_next_version(client: OpenAI, db: Database) -> None:
    _, model = await trained(client, db, suffix="again")
    second = client.fine_tuning.jobs.create(model=model, training_file=job_body()["training_file"], suffix="again").id
    await move(db, second, "succeeded")
    job = client.fine_tuning.jobs.retrieve(second)
    assert job.fine_tuned_model == f"ft:{MODEL}:alpha:again:{second[-8:]}"
    assert (job.model_extra or {})["adapter"] == {"name": "again", "version": 2, "promoted": True}


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"technique": "full"}, "technique"), ({"execution": {"backend": "unsloth"}}, "execution.backend")],
)
async def test_what_an_adapter_cannot_be_gone_on_with_is_refused(
    client: OpenAI, http: httpx.Client, db: Database, fields: dict[str, Any], param: str
) -> None:
    _, model = await trained(client, db)
    answer = http.post("/v1/fine_tuning/jobs", json=job_body(model=model, **fields))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_operation")
    assert answer.json()["error"]["param"] == param


async def test_another_projects_model_does_not_exist(client: OpenAI, service: Service, db: Database) -> None:
    _, model = await trained(client, db)
    with service.http("beta") as other:
        answer = other.post("/v1/fine_tuning/jobs", json=job_body(model=model))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_found")
    assert model in answer.json()["error"]["message"]


async def test_a_whole_model_is_trained_as_a_base(client: OpenAI, http: httpx.Client, db: Database) -> None:
    job_id = create(client, suffix="whole")
    uri = f"s3://llamaflow-data/model/{job_id}/"
    own = BASE | {"id": f"{uri}model/", "kind": "s3", "location": f"{uri}model/", "revision": "e" * 64}
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        version = await register_version(session, job, own, uri, "d" * 64, {})
        assert (version.adapter_id, version.version) == (None, None)
    answer = http.post("/v1/fine_tuning/jobs", json=job_body(model=version.model, technique="full"))
    assert answer.status_code == 201, answer.text
    base = await base_of(db, answer.json()["id"])
    assert (base["kind"], base["location"], base["revision"]) == ("s3", f"{uri}model/", "e" * 64)
    assert "parent" not in base


async def test_the_prefix_of_a_result_is_gone_on_from_by_its_manifest(
    http: httpx.Client, service: Service, db: Database
) -> None:
    content = json.dumps(manifest("x") | {"base": BASE}).encode()
    service.s3.put_object(Bucket=BUCKET, Key="api/result/manifest.json", Body=content)
    answer = http.post("/v1/fine_tuning/jobs", json=job_body(model=f"s3://{BUCKET}/api/result/"))
    assert answer.status_code == 201, answer.text
    base = await base_of(db, answer.json()["id"])
    assert base["parent"]["manifest_sha256"] == hashlib.sha256(content).hexdigest()
    assert (base["id"], base["kind"], base["revision"]) == (MODEL, "package", BASE["revision"])


@pytest.mark.parametrize(
    ("base", "code"),
    [({"id": "/etc", "kind": "path", "location": "/etc"}, "model_not_found"), (None, "manifest_mismatch")],
)
def test_a_manifest_leads_to_no_place_that_the_job_could_not_name(
    http: httpx.Client, service: Service, base: dict[str, Any] | None, code: str
) -> None:
    content = json.dumps(manifest("x") | {"base": BASE | base}) if base else "{}"
    service.s3.put_object(Bucket=BUCKET, Key="api/forged/manifest.json", Body=content.encode())
    answer = http.post("/v1/fine_tuning/jobs", json=job_body(model=f"s3://{BUCKET}/api/forged/"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


def test_a_prefix_with_an_adapter_alone_says_where_to_look(http: httpx.Client, service: Service) -> None:
    service.s3.put_object(Bucket=BUCKET, Key="api/bare/adapter_config.json", Body=b"{}")
    error = http.post("/v1/fine_tuning/jobs", json=job_body(model=f"s3://{BUCKET}/api/bare/")).json()["error"]
    assert error["code"] == "model_not_found"
    assert "give the folder that its manifest.json lies in" in error["message"]
