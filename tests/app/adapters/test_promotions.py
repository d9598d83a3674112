"""Which version a name answers with: compare-and-set, rollback, history, events, the pointer on S3, and what may be deleted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import select

from app.adapters import pointer
from app.adapters.history import previous
from app.auth import Caller
from app.db import Database
from app.doctor.finding import Patient
from app.doctor.results import pointers
from app.inference.resolve import find_model
from app.models import AdapterVersion, Job, Promotion, WebhookDelivery
from tests.app.adapters import folders
from tests.app.conftest import Service
from tests.app.jobs.factory import create, move

pytestmark = pytest.mark.db

ALPHA = Caller("proj_alpha", "alpha", "key_alpha", frozenset({"write"}), None)


@pytest.mark.parametrize(
    ("changes", "there", "now", "to"),
    [
        ([("job", 1), ("job", 2), ("job", 3)], {1, 2, 3}, 3, 2),
        ([("job", 1), ("job", 2), ("job", 3), ("rollback", 2)], {1, 2, 3}, 2, 1),
        ([("job", 1), ("job", 2), ("rollback", 1)], {1, 2}, 1, None),
        ([("job", 1), ("job", 2), ("rollback", 1), ("request", 3)], {1, 2, 3}, 3, 1),
        ([("job", 1), ("job", 2), ("job", 3)], {1, 3}, 3, 1),
        ([("job", 1), ("job", 2), ("deletion", None)], {1}, None, 1),
        ([("job", 1), ("request", 2), ("request", 1)], {1, 2}, 1, 2),
        ([], {1}, None, None),
    ],
)
def test_a_rollback_takes_the_uppermost_promotion_away(
    changes: list[tuple[str, int | None]], there: set[int], now: int | None, to: int | None
) -> None:
    assert previous(changes, there, now) == to


def versions(http: httpx.Client, api: Service, name: str, number: int) -> None:
    """Imported versions 1…number, the last one promoted."""
    uri = folders.put(api.s3, f"promotions/{name}")
    for _ in range(number):
        assert http.post("/v1/adapters/import", json={"name": name, "uri": uri}).status_code == 200


def post(http: httpx.Client, path: str, **body: Any) -> tuple[Any, Any]:
    """Status, and the promoted version or the code of the error."""
    answer = http.post(f"/v1/adapters/{path}", json=body).json()
    return (answer.get("promoted_version"), answer.get("error", {}).get("code"))


def current(api: Service, name: str, project: str = "proj_alpha") -> dict[str, Any]:
    """The pointer on S3."""
    told: dict[str, Any] = json.loads(pointer.read(api.settings, pointer.address(api.settings, project, name)))
    return told


def test_promotion_is_compare_and_set_and_the_history_tells_who_and_why(http: httpx.Client, service: Service) -> None:
    versions(http, service, "cas", 3)
    assert post(http, "cas/promote", version=1, expected=2) == (None, "stale_promotion")
    assert post(http, "cas/promote", version="1", expected=3, reason="better on Mondays") == (1, None)
    assert post(http, "cas/promote", version=1, expected=3) == (1, None)
    assert post(http, "cas/promote", version=9) == (None, "version_not_found")
    assert post(http, "cas/rollback", reason="no, worse") == (3, None)
    assert post(http, "cas/rollback", expected=1) == (None, "stale_promotion")
    rows = http.get("/v1/adapters/cas/promotions").json()["data"]
    shown = [(row["kind"], row["from_version"], row["to_version"], row["reason"]) for row in rows]
    assert shown == [
        ("rollback", 1, 3, "no, worse"),
        ("request", 3, 1, "better on Mondays"),
        ("import", 2, 3, ""),
        ("import", 1, 2, ""),
        ("import", None, 1, ""),
    ]
    assert {row["api_key_id"] for row in rows} == {"key_alpha"}
    page = http.get("/v1/adapters/cas/promotions", params={"limit": 2, "after": rows[1]["id"]}).json()
    assert ([row["id"] for row in page["data"]], page["has_more"]) == ([rows[2]["id"], rows[3]["id"]], True)


async def test_of_many_who_expect_the_same_version_one_promotes(service: Service, http: httpx.Client) -> None:
    await asyncio.to_thread(versions, http, service, "contended", 7)

    async def promote(number: int) -> int:
        async with httpx.AsyncClient(base_url=service.url, headers=dict(http.headers), timeout=60) as client:
            body = {"version": number, "expected": 7}
            return (await client.post("/v1/adapters/contended/promote", json=body)).status_code

    said = await asyncio.gather(*(promote(number) for number in range(1, 7)))
    assert sorted(said) == [200, 409, 409, 409, 409, 409]
    promoted = said.index(200) + 1
    assert current(service, "contended")["version"] == promoted


async def test_jobs_that_finish_at_once_give_a_version_each_and_an_unbroken_history(
    client: OpenAI, service: Service, db: Database
) -> None:
    jobs = [create(client, suffix="finish") for _ in range(5)]
    await asyncio.gather(*(move(db, job_id, "succeeded") for job_id in jobs))
    async with db.transaction() as session:
        query = select(Promotion).where(Promotion.adapter == "finish").order_by(Promotion.number)
        rows = (await session.execute(query)).scalars().all()
    assert [(row.number, row.from_version, row.to_version) for row in rows] == [
        (1, None, 1), (2, 1, 2), (3, 2, 3), (4, 3, 4), (5, 4, 5),
    ]  # fmt: skip
    assert sorted(str(row.job_id) for row in rows) == sorted(jobs)
    await asyncio.gather(*(pointer.write_of_job(db, service.settings, rows[0].project_id, job_id) for job_id in jobs))
    assert current(service, "finish")["version"] == 5


async def test_the_next_request_that_names_the_adapter_uses_the_new_version(
    http: httpx.Client, service: Service, db: Database
) -> None:
    await asyncio.to_thread(versions, http, service, "served", 2)
    rows = (await asyncio.to_thread(http.get, "/v1/adapters/served")).json()["versions"]
    uris = {row["version"]: row["uri"] + "adapter/" for row in rows}
    for number in (1, 2, 1):
        await asyncio.to_thread(post, http, "served/promote", version=number)
        async with db.transaction() as session:
            adapter = (await find_model(session, ALPHA, "served")).adapter
        assert adapter is not None
        assert adapter["uri"] == uris[number]
        assert current(service, "served")["adapter"] == uris[number]


async def test_endpoints_that_asked_are_told_of_a_promotion_once(
    http: httpx.Client, service: Service, db: Database
) -> None:
    body = {"name": "n", "url": "http://127.0.0.1:5678/promoted", "event_types": ["adapter.promoted"]}
    endpoint = (await asyncio.to_thread(lambda: http.post("/v1/webhook_endpoints", json=body).json()))["id"]
    await asyncio.to_thread(versions, http, service, "told", 2)
    for _ in range(2):
        await asyncio.to_thread(post, http, "told/promote", version=1, reason="why")
    await asyncio.to_thread(http.delete, f"/v1/webhook_endpoints/{endpoint}")
    async with db.transaction() as session:
        query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint)
        bodies = [json.loads(row.body) for row in (await session.execute(query)).scalars()]
    told = [body["data"]["adapter"] for body in bodies if body["data"]["adapter"]["name"] == "told"]
    assert sorted((one["from_version"] or 0, one["version"], one["kind"]) for one in told) == [
        (0, 1, "import"), (1, 2, "import"), (2, 1, "request"),
    ]  # fmt: skip
    assert {body["type"] for body in bodies} == {"adapter.promoted"}


async def test_a_pointer_that_says_something_else_is_found_and_mended(
    http: httpx.Client, service: Service, db: Database
) -> None:
    await asyncio.to_thread(versions, http, service, "pointed", 1)
    uri = pointer.address(service.settings, "proj_alpha", "pointed")
    pointer.put(service.settings, uri, b"{}")
    for repair, left in ((False, 1), (True, 1), (False, 0)):
        found = await pointers(Patient(service.settings, db, repair))
        assert len([one for one in found if one.subject == "adapter pointed"]) == left
    assert current(service, "pointed")["version"] == 1


def test_what_is_promoted_is_deleted_only_when_it_is_said_twice(http: httpx.Client, service: Service) -> None:
    versions(http, service, "guarded", 2)
    prefix = http.get("/v1/adapters/guarded/versions/2").json()["uri"].removeprefix("s3://llamaflow-data/")
    refused = http.delete("/v1/adapters/guarded/versions/2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_promoted")
    assert "/v1/adapters/guarded/promote" in refused.json()["error"]["message"]
    assert http.delete("/v1/adapters/guarded").json()["error"]["code"] == "adapter_promoted"
    assert http.delete("/v1/adapters/guarded/versions/2", params={"force": True}).json()["deleted"]
    assert "Contents" not in service.s3.list_objects_v2(Bucket="llamaflow-data", Prefix=prefix)
    assert current(service, "guarded")["version"] is None
    assert post(http, "guarded/rollback") == (1, None)
    assert http.delete("/v1/adapters/guarded", params={"force": True}).json()["deleted"]
    assert http.get("/v1/adapters/guarded").json()["error"]["code"] == "adapter_not_found"
    assert pointer.read(service.settings, pointer.address(service.settings, "proj_alpha", "guarded")) == b""
    versions(http, service, "guarded", 1)
    assert [row["version"] for row in http.get("/v1/adapters/guarded").json()["versions"]] == [3]
    kinds = [row["kind"] for row in http.get("/v1/adapters/guarded/promotions").json()["data"]]
    assert kinds == ["import", "deletion", "rollback", "deletion", "import", "import"]


async def test_a_version_that_a_job_goes_on_from_is_kept(
    client: OpenAI, http: httpx.Client, service: Service, db: Database
) -> None:
    await asyncio.to_thread(versions, http, service, "parent", 2)
    job_id = create(client)
    manifest = (await asyncio.to_thread(http.get, "/v1/adapters/parent/versions/1")).json()["uri"] + "manifest.json"
    async with db.transaction() as session:
        job = await session.get_one(Job, job_id)
        job.base = job.base | {"parent": {"id": "parent", "uri": "", "manifest_uri": manifest}}
    refused = (await asyncio.to_thread(http.delete, "/v1/adapters/parent/versions/1")).json()["error"]
    assert (refused["code"], job_id in refused["message"]) == ("version_in_use", True)
    await move(db, job_id, "failed")
    assert (await asyncio.to_thread(http.delete, "/v1/adapters/parent/versions/1")).json()["deleted"]


async def test_a_version_that_cannot_be_served_is_not_promoted_and_not_rolled_back_to(
    http: httpx.Client, api_settings: Any, service: Service, db: Database
) -> None:
    await asyncio.to_thread(versions, http, service, "broken", 3)
    async with db.transaction() as session:
        rows = (await session.execute(select(AdapterVersion).where(AdapterVersion.version == 2))).scalars()
        [row] = [row for row in rows if "/broken/" in row.uri]
        row.unservable = "It is gone."
    assert await asyncio.to_thread(post, http, "broken/promote", version=2) == (None, "model_unservable")
    assert await asyncio.to_thread(post, http, "broken/rollback") == (1, None)
    assert await asyncio.to_thread(post, http, "broken/rollback") == (None, "nothing_to_roll_back_to")


def test_near_names_are_named_and_a_description_is_changed(http: httpx.Client, service: Service) -> None:
    versions(http, service, "schema-desk", 1)
    said = http.get("/v1/adapters/shema-desk").json()["error"]
    assert (said["code"], said["message"]) == (
        "adapter_not_found", "There is no adapter 'shema-desk'. Did you mean 'schema-desk'?",
    )  # fmt: skip
    for change in (http.post, http.patch):
        assert change("/v1/adapters/schema-desk", json={"description": change.__name__}).json()["description"]
    assert http.get("/v1/adapters/schema-desk").json()["description"] == "patch"
    assert http.get("/v1/adapters/schema-desk/versions/7").json()["error"]["code"] == "version_not_found"


async def test_the_lineage_of_a_jobs_version_tells_its_job_even_without_its_manifest(
    client: OpenAI, http: httpx.Client, db: Database
) -> None:
    job_id = create(client, suffix="traced")
    await move(db, job_id, "succeeded")
    told = (await asyncio.to_thread(http.get, "/v1/adapters/traced/versions/1/lineage")).json()
    assert (told["job"]["id"], told["job"]["training_file"]) == (job_id, "s3://llamaflow-data/api/train.jsonl")
    assert (told["resolved"]["n_examples"], told["config"]["suffix"]) == (12, "traced")
    assert "manifest.json" in told["problem"]
