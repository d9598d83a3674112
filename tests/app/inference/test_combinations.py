"""Several adapters under one name: kept or asked for at once, resolved to promoted versions, merged into one, refused by name."""

from __future__ import annotations

import hashlib
import json
import queue
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.auth import key_hash
from app.db import Database
from app.models import Adapter, AdapterVersion, ApiKey, Project
from finetune.model.peft_folder import Imported
from tests.app.adapters import folders
from tests.app.conftest import BUCKET, Service
from tests.app.inference.peer import Peer, whole

pytestmark = pytest.mark.db

BASE = {"id": "org/base", "kind": "hub", "location": "org/base", "revision": "a" * 40, "template": None}
OTHER = BASE | {"id": "org/other", "revision": "b" * 40}
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
HEADERS = {"authorization": "Bearer lf-several"}


@pytest.fixture(scope="module", autouse=True)
async def adapters(db: Database) -> None:
    """A project with two adapters of one base, one of another, and a name without a promoted version."""
    async with db.transaction() as session:
        session.add(Project(id="proj_several", name="several"))
        await session.flush()
        session.add(
            ApiKey(id="key_several", project_id="proj_several", hash=key_hash("lf-several"), scopes=["read", "write"])
        )
        for name, base in {"schema": BASE, "kpi": BASE, "foreign": OTHER}.items():
            session.add(
                Adapter(id=f"ad_{name}", project_id="proj_several", name=name, promoted_version=1, last_version=1)
            )
            await session.flush()
            session.add(
                AdapterVersion(
                    id=f"adv_{name}", project_id="proj_several", adapter_id=f"ad_{name}", version=1,
                    model=f"ft:{name}", base=base, uri=f"s3://{BUCKET}/{name}/", manifest_sha256="f" * 64,
                )
            )  # fmt: skip
        session.add(Adapter(id="ad_empty", project_id="proj_several", name="empty"))


@pytest.fixture
def http(api: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api, headers=HEADERS, timeout=30, trust_env=False) as client:
        yield client


def told(http: httpx.Client, peer: Peer, model: str) -> dict[str, Any]:
    """`llamaflow` of what the engine is asked when somebody asks `model`."""
    seen: queue.Queue[dict[str, Any]] = queue.Queue()
    peer.answer(whole(200, {}), then=seen.put)
    reply = http.post("/v1/chat/completions", json={"model": model, **ASK})
    assert (reply.status_code, reply.json()) == (200, {})
    asked: dict[str, Any] = seen.get(timeout=20)["llamaflow"]
    return asked


def combine(http: httpx.Client, name: str, *adapters: str, **more: Any) -> httpx.Response:
    return http.post(
        "/v1/adapters/combine", json={"name": name, "adapters": [{"name": one} for one in adapters], **more}
    )


def test_several_names_in_a_request_are_one_combination(http: httpx.Client, peer: Peer) -> None:
    asked = told(http, peer, "kpi+schema")
    assert asked["base"] == BASE
    assert asked["adapter"] is None
    assert set(asked["combination"]) == {"members"}
    assert [one["name"] for one in asked["combination"]["members"]] == ["kpi", "schema"]
    assert asked["combination"]["members"][0]["adapter"]["uri"] == f"s3://{BUCKET}/kpi/adapter/"


def test_a_name_answers_as_a_combination_until_a_version_of_it_is_promoted(
    http: httpx.Client, peer: Peer, service: Service
) -> None:
    made = combine(http, "both", "schema", "kpi", method="route", threshold=0.4, description="Both.")
    assert (made.status_code, made.json()["version"], made.json()["method"]) == (200, None, "route")
    shown = http.get("/v1/adapters/both").json()
    assert (shown["promoted_version"], shown["description"]) == (None, "Both.")
    assert [part["name"] for part in shown["combination"]["adapters"]] == ["schema", "kpi"]
    asked = told(http, peer, "both")["combination"]
    assert (asked["method"], asked["threshold"], len(asked["members"])) == ("route", 0.4, 2)
    key = "files/proj_several/adapters/both/current.json"
    current = json.loads(service.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    assert (current["version"], current["combination"]["method"]) == (None, "route")


def test_a_merge_is_a_version_that_its_manifest_vouches_for(http: httpx.Client, peer: Peer, service: Service) -> None:
    combine(http, "merged", "schema", "kpi")
    file = {"path": "adapter_config.json", "sha256": hashlib.sha256(folders.config()).hexdigest(), "size": 1}
    seen: queue.Queue[dict[str, Any]] = queue.Queue()
    peer.answer(whole(200, {"files": [file], "lora": {"r": 8}}), then=seen.put)
    parts = [{"name": "schema", "weight": 0.7}, {"name": "kpi", "weight": 0.3}]
    made = http.post("/v1/adapters/combine", json={"name": "merged", "adapters": parts, "method": "cat"}).json()
    asked = seen.get(timeout=20)
    assert (made["version"], asked["method"], asked["weights"]) == (1, "cat", [0.7, 0.3])
    [version] = http.get("/v1/adapters/merged").json()["versions"]
    assert (version["promoted"], version["base_revision"]) == (True, "a" * 40)
    assert version["imported_from"] == "cat of schema 1 × 0.7, kpi 1 × 0.3"
    assert asked["target"] == f"{version['uri']}adapter/"
    key = version["uri"].removeprefix(f"s3://{BUCKET}/") + "manifest.json"
    content = service.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert hashlib.sha256(content).hexdigest() == version["manifest_sha256"]
    assert [one.path for one in Imported.model_validate_json(content).files] == ["adapter/adapter_config.json"]
    assert http.get("/v1/adapters/merged").json()["combination"] is None
    assert told(http, peer, "merged")["adapter"]["uri"] == asked["target"]


def test_a_merge_that_the_engine_refuses_leaves_nothing(http: httpx.Client, peer: Peer) -> None:
    problem = {
        "message": "They have other ranks.",
        "type": "invalid_request_error",
        "param": "method",
        "code": "unsupported_operation",
    }
    peer.answer(whole(400, {"error": problem}))
    refused = combine(http, "never", "schema", "kpi", method="ties")
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, "They have other ranks.")
    assert http.get("/v1/adapters/never").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"adapters": [{"name": "schema"}]}, 400, None, "2 to 8 entries"),
        ({"adapters": [{"name": "schema"}, {"name": "schema"}]}, 400, None, "named once"),
        ({"name": "kpi"}, 400, None, "none of its own adapters"),
        ({"adapters": [{"name": "schema", "weight": 2}, {"name": "kpi"}]}, 400, None, "cat and ties only"),
        ({"method": "arrow", "threshold": 0.5}, 400, None, "it is route's"),
        ({"method": "rout"}, 400, None, "route"),
        ({"adapters": [{"name": "schema"}, {"name": "kpy"}]}, 404, "adapter_not_found", "Did you mean 'kpi'?"),
        ({"adapters": [{"name": "schema"}, {"name": "empty"}]}, 404, "model_not_found", "No version"),
        (
            {"adapters": [{"name": "schema"}, {"name": "foreign"}]},
            400,
            "incompatible_bases",
            "schema on org/base at aaaaaaaaaaaa; foreign on org/other at bbbbbbbbbbbb",
        ),
    ],
)
def test_what_cannot_be_combined_is_named(
    http: httpx.Client, body: dict[str, Any], status: int, code: str | None, said: str
) -> None:
    given = {"name": "wrong", "adapters": [{"name": "schema"}, {"name": "kpi"}]} | body
    refused = http.post("/v1/adapters/combine", json=given)
    assert refused.status_code == status
    assert said in refused.json()["error"]["message"]
    assert code is None or refused.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("schema+foreign", 400, "incompatible_bases"),
        ("schema+schema", 400, "invalid_value"),
        ("schema+kpy", 404, "adapter_not_found"),
        ("schema+", 404, "model_not_found"),
        ("both-ways+schema", 400, "unsupported_operation"),
    ],
)
def test_what_cannot_answer_is_named(http: httpx.Client, model: str, status: int, code: str) -> None:
    combine(http, "both-ways", "schema", "kpi")
    refused = http.post("/v1/chat/completions", json={"model": model, **ASK})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert refused.json()["error"]["param"] == "model"


def test_nothing_of_another_project_is_combined(api: str) -> None:
    with httpx.Client(base_url=api, headers={"authorization": "Bearer lf-beta"}, trust_env=False, timeout=30) as http:
        assert combine(http, "stolen", "schema", "kpi").status_code == 404
        assert http.post("/v1/chat/completions", json={"model": "schema+kpi", **ASK}).status_code == 404
