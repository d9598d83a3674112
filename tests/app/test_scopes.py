"""Every route of the application, walked: who may call it, and that a project sees nothing of another one's, not even that it is there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute

from app.db import Database
from app.inference.responses.answer import Answer
from app.inference.responses.schemas import ResponseCreate
from app.main import create_app
from app.models import (
    Adapter,
    AdapterVersion,
    Checkpoint,
    Feedback,
    Job,
    KeptResponse,
    Loop,
    WebhookDelivery,
    WebhookEndpoint,
    new_id,
)
from app.settings import Settings
from tests.app.conftest import ROWS, Service, job_body

pytestmark = pytest.mark.db

JOBS = "/v1/fine_tuning/jobs"
OPEN = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}
"""Answered without a key."""
BY_TOKEN = "/internal/"
"""Opened by a run's token, never by a key."""
READING = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    f"{JOBS}/estimate",
    "/v1/fine_tuning/sweeps",
    f"{JOBS}/{{job_id}}/estimate",
}
"""Asked by POST, though nothing is written."""
NUMBER = 42424242
BODIES: dict[str, dict[str, Any]] = {
    "/v1/webhook_endpoints/{endpoint_id}": {"name": "other"},
    "/v1/webhook_endpoints/{endpoint_id}/test": {"event_type": "fine_tuning.job.succeeded"},
    "/v1/adapters/{name}": {"description": "other"},
    "/v1/adapters/{name}/promote": {"version": NUMBER},
    "/v1/uploads/{upload_id}/complete": {"part_ids": []},
    "/v1/imports/{source_id}/events": {"events": []},
    "/internal/runs/mirror": {"holder": "somebody", "mirror": {"train_key": "x", "files": []}},
}
"""What a route needs to be asked at all."""
MISSING = "999"


def routes() -> Iterator[tuple[str, str]]:
    """(method, path) of every route, documented or not."""
    waiting: list[Any] = list(create_app(Settings()).routes)
    while waiting:
        route = waiting.pop()
        if hasattr(route, "original_router"):
            waiting += route.original_router.routes
        elif isinstance(route, APIRoute):
            yield from ((method, route.path) for method in sorted(route.methods - {"HEAD"}))


ALL = sorted(routes())
KEYED = [(method, path) for method, path in ALL if path not in OPEN and not path.startswith(BY_TOKEN)]
WITH_ID = [(method, path) for method, path in KEYED if "{" in path]
WRITING = [(method, path) for method, path in KEYED if method != "GET" and path not in READING]


@pytest_asyncio.fixture(scope="module")
async def owned(service: Service, db: Database) -> AsyncIterator[dict[str, str]]:
    """What the project alpha has, by the name of the path's parameter."""
    with service.http() as alpha:
        file = alpha.post("/v1/files", files={"file": ("mine.jsonl", ROWS)}, data={"purpose": "fine-tune"}).json()["id"]
        body = job_body(training_file=file, suffix="alphas-own", metadata={"whose": "alphas-own"})
        job = alpha.post(JOBS, json=body).json()["id"]
        announced = {"filename": "alphas-own", "purpose": "fine-tune", "bytes": 0}
        upload = alpha.post("/v1/uploads", json=announced).json()["id"]
        alpha.post("/v1/imports", json={"id": "ftjob-alphas-own", "kind": "job", "object": {}})
    said, loop = new_id("fb_"), new_id("loop_")
    model = f"ft:tiny:alpha:alphas-own:{job[-8:]}"
    endpoint, delivery, checkpoint, response = new_id("we_"), new_id("whd_"), new_id("ftckpt_"), new_id("resp_")
    async with db.transaction() as session:
        row = await session.get_one(Job, job)
        row.fine_tuned_model = model
        adapter = Adapter(
            id=new_id("adapter_"),
            project_id="proj_alpha",
            name="alphas-own",
            promoted_version=NUMBER,
            last_version=NUMBER,
        )
        made = WebhookEndpoint(
            id=endpoint, project_id="proj_alpha", name="alphas-own", url="http://127.0.0.1:5678/", event_types=[]
        )
        session.add_all([adapter, made])
        await session.flush()
        session.add(AdapterVersion(
            id=new_id("adv_"), project_id="proj_alpha", adapter_id=adapter.id, version=NUMBER, job_id=job, model=model,
            base={"id": "tiny", "kind": "path", "location": "/nowhere/tiny"}, uri=f"s3://llamaflow-data/model/{job}/",
            manifest_sha256="0" * 64,
        ))  # fmt: skip
        session.add(Checkpoint(
            id=checkpoint, project_id="proj_alpha", job_id=job, step_number=1, metrics={},
            uri=f"s3://llamaflow-data/model/{job}/checkpoints/step-1/",
        ))  # fmt: skip
        session.add(KeptResponse(
            id=response, project_id="proj_alpha", messages=[{"role": "user", "content": "alphas-own"}],
            response=Answer(ResponseCreate(model="tiny", input="x"), stored=True).begun().model_dump(mode="json"),
            expires_at=datetime.now(UTC) + timedelta(days=1),
        ))  # fmt: skip
        session.add(Feedback(
            id=said, project_id="proj_alpha", api_key_id="key_alpha", completion_id="chatcmpl-alphas-own", choice=0,
            model="alphas-own", adapter="alphas-own", version=NUMBER, rating="bad", messages=[], answer="alphas-own",
        ))  # fmt: skip
        session.add(Loop(
            id=loop, project_id="proj_alpha", api_key_id="key_alpha", adapter="alphas-own", min_new_examples=1,
            gate={"metric": "loss"}, paused_at=datetime.now(UTC),
        ))  # fmt: skip
        session.add(WebhookDelivery(
            id=delivery, project_id="proj_alpha", job_id=job, seq=1, endpoint_id=endpoint, event_id=new_id("evt_"),
            type="fine_tuning.job.running", url="http://127.0.0.1:5678/", host="127.0.0.1:5678", body=b"{}", status="dead",
        ))  # fmt: skip
    yield {
        "job_id": job, "file_id": file, "model": model, "name": "alphas-own", "endpoint_id": endpoint,
        "delivery_id": delivery, "checkpoint": checkpoint, "response_id": response, "upload_id": upload, "version": str(NUMBER),
        "source_id": "ftjob-alphas-own", "feedback_id": said, "loop_id": loop,
    }  # fmt: skip


def filled(path: str, ids: dict[str, str]) -> str:
    """A path with its parameters; an unknown one means that this test is to learn a new kind of id."""
    return re.sub(r"{(\w+)(?::path)?}", lambda found: ids[found[1]], path)


def ask(service: Service, method: str, path: str, key: str | None, body: Any = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, service.url + path, headers=headers, json=body, timeout=30, trust_env=False)


def test_the_walk_sees_the_routes() -> None:
    assert ("POST", JOBS) in WRITING
    assert ("GET", "/v1/models/{model:path}") in WITH_ID
    assert len(KEYED) > 20


@pytest.mark.parametrize(("method", "path"), KEYED)
def test_without_a_key_nothing_is_answered(service: Service, owned: dict[str, str], method: str, path: str) -> None:
    for key, code in ((None, "missing_api_key"), ("run-none", "invalid_api_key")):
        said = ask(service, method, filled(path, owned), key)
        assert (said.status_code, said.json()["error"]["code"]) == (401, code)
        assert said.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), [route for route in ALL if route[1].startswith(BY_TOKEN)])
def test_a_key_does_not_open_what_is_for_runs(service: Service, method: str, path: str) -> None:
    for key in (None, "lf-alpha"):
        assert ask(service, method, path, key, BODIES.get(path)).status_code == 401


@pytest.mark.parametrize(("method", "path"), WRITING)
def test_a_key_that_reads_does_not_write(service: Service, owned: dict[str, str], method: str, path: str) -> None:
    said = ask(service, method, filled(path, owned), "lf-gamma")
    assert (said.status_code, said.json()["error"]["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize(("method", "path"), WITH_ID)
def test_what_another_project_has_is_not_there(service: Service, owned: dict[str, str], method: str, path: str) -> None:
    missing = {name: value[:-3] + MISSING for name, value in owned.items()}
    body = BODIES.get(path)
    foreign = ask(service, method, filled(path, owned), "lf-beta", body)
    absent = ask(service, method, filled(path, missing), "lf-beta", body)
    assert (foreign.status_code, absent.status_code) == (404, 404)
    said, expected = foreign.text, absent.text
    for name, value in owned.items():
        said, expected = said.replace(value, "ID"), expected.replace(missing[name], "ID")
    assert said == expected
    assert named(foreign) == named(absent)
    if method == "GET":
        assert ask(service, method, filled(path, owned), "lf-alpha").status_code == 200


def named(said: httpx.Response) -> set[tuple[str, str]]:
    """Headers but those that differ from answer to answer."""
    return {
        (name, value) for name, value in said.headers.items() if name not in ("x-request-id", "date", "content-length")
    }


@pytest.mark.parametrize("path", [path for method, path in KEYED if method == "GET" and "{" not in path])
def test_no_list_holds_anything_of_another_project(service: Service, owned: dict[str, str], path: str) -> None:
    for key in ("lf-beta", "lf-gamma"):
        said = ask(service, "GET", path, key)
        assert said.status_code in (200, 400, 403)
        assert [value for value in owned.values() if value in said.text] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (JOBS, {"training_file": "{file_id}"}),
        (JOBS, {"validation_file": "{file_id}"}),
        (JOBS, {"model": "{model}"}),
        (JOBS, {"training_file": "s3://llamaflow-data/model/{job_id}/metrics.csv"}),
        (JOBS, {"model": "s3://llamaflow-data/model/{job_id}/adapter/"}),
        (JOBS, {"output": {"path": "s3://llamaflow-data/model/{job_id}/"}}),
        ("/v1/files", {"s3_uri": "s3://llamaflow-data/model/{job_id}/manifest.json", "purpose": "fine-tune"}),
        ("/v1/files", {"s3_uri": "s3://llamaflow-data/files/proj_alpha/{file_id}", "purpose": "fine-tune"}),
        ("/v1/chat/completions", {"model": "{model}", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"model": "{model}", "prompt": "x"}),
        ("/v1/responses", {"model": "{model}", "input": "x"}),
        (
            "/v1/responses",
            {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "input": "x", "previous_response_id": "{response_id}"},
        ),
        ("/v1/chat/completions", {"model": "{name}", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/feedback", {"completion_id": "chatcmpl-{name}", "rating": "bad"}),
        ("/v1/feedback/export", {"adapter": "{name}"}),
        ("/v1/loops", {"adapter": "{name}", "every": 60, "gate": {"metric": "loss"}}),
        ("/v1/chat/completions", {"model": "{checkpoint}", "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/chat/completions", {"model": "{model}:ckpt-step-1", "messages": [{"role": "user", "content": "x"}]}),
    ],
)
def test_naming_what_another_project_has_is_answered_as_naming_nothing(
    service: Service, owned: dict[str, str], path: str, body: dict[str, Any]
) -> None:
    missing = {name: value[:-3] + MISSING for name, value in owned.items()}
    said = []
    for ids in (owned, missing):
        given = job_body(**placed(body, ids)) if path == JOBS else placed(body, ids)
        answer = ask(service, "POST", path, "lf-beta", given)
        assert answer.status_code in (400, 404)
        text = answer.text
        for value in ids.values():
            text = text.replace(value, "ID")
        said.append((answer.status_code, text))
    assert said[0] == said[1]


def placed(value: Any, ids: dict[str, str]) -> Any:
    """A body with ids put in."""
    if isinstance(value, str):
        return re.sub(r"{(\w+)}", lambda found: ids[found[1]], value)
    if isinstance(value, dict):
        return {name: placed(inner, ids) for name, inner in value.items()}
    return [placed(inner, ids) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", [JOBS, "/v1/files"])
def test_a_cursor_of_another_project_is_no_row_of_the_list(service: Service, owned: dict[str, str], path: str) -> None:
    real = owned["job_id"] if path == JOBS else owned["file_id"]
    said = [ask(service, "GET", f"{path}?after={cursor}", "lf-beta") for cursor in (real, real[:-3] + MISSING)]
    assert [answer.status_code for answer in said] == [400, 400]
    assert said[0].text.replace(real, "ID") == said[1].text.replace(real[:-3] + MISSING, "ID")


def test_an_idempotency_key_of_another_project_is_ones_own_to_use(service: Service) -> None:
    headers = {"idempotency-key": "the-same-in-both"}
    with service.http(**headers) as alpha, service.http("beta", **headers) as beta:
        first = alpha.post(JOBS, json=job_body())
        second = beta.post(JOBS, json=job_body(suffix="another-body"))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]
