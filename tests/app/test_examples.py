"""The document as a person reads it: every operation says what it is, and every example in it is sent and accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.openapi import TAGS
from app.settings import Settings
from tests.app.adapters import folders
from tests.app.conftest import ROWS, Service, serving
from tests.conformance.engine import EchoEngine

DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [(method, path, body) for path, each in DOCUMENT["paths"].items() for method, body in each.items()]
LAST = ("/v1/uploads/{upload_id}/complete", "/v1/adapters/{name}/rollback")
"""Need what others have made."""


def example(operation: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON body an operation shows."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    while "$ref" in schema or "anyOf" in schema:
        name = (schema.get("$ref") or schema["anyOf"][0].get("$ref", "")).rpartition("/")[2]
        schema = DOCUMENT["components"]["schemas"].get(name, {})
    return schema.get("example")  # type: ignore[no-any-return]


WITH_EXAMPLE = sorted(
    ((path, body) for method, path, body in OPERATIONS if method == "post" and example(body)),
    key=lambda pair: (pair[0] in LAST, pair[0]),
)


@pytest.mark.unit
@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=lambda value: str(value)[:60])
def test_every_operation_says_what_it_is(method: str, path: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"][0] in {tag["name"] for tag in TAGS}
    if path.startswith("/v1/"):
        assert operation["security"]
        assert {"400", "401", "429", "500"} <= set(operation["responses"])


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    """A client of the service with an engine behind it, where the examples' datasets and folders are there."""
    service.s3.put_object(Bucket="llamaflow-data", Key="train.jsonl", Body=ROWS)
    folders.put(service.s3, "adapters/support")
    folders.put(service.s3, "adapters/support")
    engine = EchoEngine()
    settings = service.settings.model_copy(update={"engine_url": engine.url})
    with serving(settings) as url, Service(url, settings, service.s3).http() as made:
        yield made
    engine.close()


@pytest.fixture(scope="module")
def ids(http: httpx.Client) -> dict[str, str]:
    """What paths and examples speak of."""
    upload = http.post("/v1/uploads", json={"filename": "x", "purpose": "fine-tune", "bytes": 1}).json()["id"]
    part = http.post(f"/v1/uploads/{upload}/parts", files={"data": b"x"}).json()["id"]
    where = {"name": "n", "url": "http://127.0.0.1:5678/"}
    endpoint = http.post("/v1/webhook_endpoints", json=where).json()["id"]
    http.post("/v1/imports", json={"id": "ftjob-abc", "kind": "job", "object": {}})
    for _ in range(2):
        http.post("/v1/adapters/import", json={"name": "support", "uri": "s3://llamaflow-data/adapters/support/"})
    return {
        "upload_id": upload, "part_abc": part, "endpoint_id": endpoint, "source_id": "ftjob-abc", "name": "support",
    }  # fmt: skip


@pytest.mark.unit
def test_most_bodies_have_an_example() -> None:
    assert len(WITH_EXAMPLE) >= 17


UNHEARD = {"/v1/webhook_endpoints/{endpoint_id}/test": "webhook_endpoint_unreachable"}
"""Nobody listens at the example's address."""


@pytest.mark.db
@pytest.mark.parametrize(("path", "operation"), WITH_EXAMPLE, ids=[path for path, _ in WITH_EXAMPLE])
def test_an_example_is_accepted(http: httpx.Client, ids: dict[str, str], path: str, operation: dict[str, Any]) -> None:
    body = example(operation) or {}
    if "part_ids" in body:
        body = body | {"part_ids": [ids[number] for number in body["part_ids"]]}
    answer = http.post(path.format(**ids), json=body, timeout=60)
    if path in UNHEARD:
        assert answer.json()["error"]["code"] == UNHEARD[path]
        return
    assert answer.status_code in (200, 201), answer.text
    assert answer.headers["content-type"] == "application/json"
