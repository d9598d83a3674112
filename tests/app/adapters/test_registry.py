"""The registry and /v1/models: versions numbered without a race, promoted, listed, deleted, and seen by their project only."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from openai import ConflictError, NotFoundError, OpenAI

from app.adapters.service import register_version, slug
from app.db import Database
from app.jobs import lifecycle
from tests.app.conftest import MODEL, Service
from tests.app.jobs.factory import BASE, create, move

pytestmark = pytest.mark.db


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        ("support", "support"),
        ("Küstennähe v2!", "kustennahe-v2"),
        ("--a  b--", "a-b"),
        ("漢字", None),
        ("x" * 64, "x" * 64),
    ],
)
def test_a_suffix_becomes_a_name(suffix: str, name: str | None) -> None:
    assert slug(suffix) == name


async def test_versions_of_one_name_are_numbered_without_a_race_and_the_last_is_promoted(
    client: OpenAI, http: httpx.Client, db: Database
) -> None:
    jobs = [create(client, suffix="race") for _ in range(6)]

    async def register(job_id: str) -> int | None:
        async with db.transaction() as session:
            job = await lifecycle.lock(session, job_id)
            return (await register_version(session, job, BASE, f"s3://x/{job_id}/", "0" * 64, {})).version

    assert sorted(await asyncio.gather(*map(register, jobs)), key=str) == [1, 2, 3, 4, 5, 6]
    assert await register(jobs[0]) in range(1, 7)
    adapter = await asyncio.to_thread(lambda: http.get("/v1/adapters/race").json())
    assert (adapter["promoted_version"], [version["version"] for version in adapter["versions"]]) == (
        6,
        [6, 5, 4, 3, 2, 1],
    )
    assert [version["promoted"] for version in adapter["versions"]] == [True] + [False] * 5


async def test_a_name_given_for_the_registry_wins_over_the_suffix(client: OpenAI, db: Database) -> None:
    job_id = create(client, suffix="other", extra_body={"output": {"register_as": "given-name"}})
    await move(db, job_id, "succeeded")
    assert (client.fine_tuning.jobs.retrieve(job_id).model_extra or {})["adapter"]["name"] == "given-name"


async def test_without_a_suffix_the_id_has_an_empty_part_and_no_name_is_registered(
    client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    await move(db, job_id, "succeeded")
    job = client.fine_tuning.jobs.retrieve(job_id)
    assert job.fine_tuned_model == f"ft:{MODEL}:alpha::{job_id[-8:]}"
    assert (job.model_extra or {})["adapter"] is None


async def test_models_are_bases_and_fine_tuned_ones_found_by_their_whole_id(
    client: OpenAI, http: httpx.Client, db: Database
) -> None:
    job_id = create(client, suffix="listed")
    await move(db, job_id, "succeeded")
    name = client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model or ""
    assert {MODEL, name} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(name).owned_by == "alpha"
    assert client.models.retrieve(MODEL).owned_by == "HuggingFaceTB"
    raw = await asyncio.to_thread(http.get, f"/v1/models/{name}")
    assert raw.json()["id"] == name


async def test_a_promoted_model_is_deleted_only_when_it_is_said_twice(
    client: OpenAI, http: httpx.Client, db: Database
) -> None:
    jobs = [create(client, suffix="deleted") for _ in range(2)]
    for job_id in jobs:
        await move(db, job_id, "succeeded")
    first, second = (client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model or "" for job_id in jobs)
    with pytest.raises(ConflictError) as refused:
        client.models.delete(second)
    assert refused.value.code == "version_promoted"
    assert client.models.delete(first).deleted
    assert client.models.delete(second, extra_query={"force": "true"}).deleted
    for gone in (first, second):
        with pytest.raises(NotFoundError):
            client.models.retrieve(gone)
    adapter = await asyncio.to_thread(lambda: http.get("/v1/adapters/deleted").json())
    assert (adapter["promoted_version"], adapter["versions"]) == (None, [])


def test_a_base_cannot_be_deleted(http: httpx.Client) -> None:
    refused = http.delete(f"/v1/models/{MODEL}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_operation")


async def test_nothing_of_another_projects_models_can_be_seen(client: OpenAI, service: Service, db: Database) -> None:
    job_id = create(client, suffix="private")
    await move(db, job_id, "succeeded")
    name = client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model or ""
    with OpenAI(base_url=service.url + "/v1", api_key="lf-beta", max_retries=0) as beta:
        assert name not in {model.id for model in beta.models.list()}
        for call in (beta.models.retrieve, beta.models.delete):
            with pytest.raises(NotFoundError):
                call(name)
    with service.http("beta") as http:
        assert await asyncio.to_thread(lambda: http.get("/v1/adapters/private").status_code) == 404
        assert "private" not in [
            row["name"] for row in (await asyncio.to_thread(http.get, "/v1/adapters")).json()["data"]
        ]
    assert client.models.retrieve(name).id == name
