"""Endpoints, secrets and the log of deliveries, by the official client where it knows them; rows moved as a worker would."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from click.testing import CliRunner
from openai import OpenAI
from pydantic import SecretStr

from app.cli import main
from app.db import Database
from app.jobs import lifecycle
from app.models import WebhookDelivery, WebhookHost
from app.settings import Settings
from app.webhooks.event_types import DEFAULT, EVENT_TYPES
from tests.app.conftest import Service, job_body, serving
from tests.app.worker.receiver import Received, Receiver, receiving

pytestmark = pytest.mark.db

URL = "http://127.0.0.1:5678/hook"
ENDPOINTS = "/v1/webhook_endpoints"


@pytest.fixture
def made(client: OpenAI) -> Iterator[Any]:
    """An endpoint with the default events, deleted afterwards."""
    endpoint = client.webhooks.create(name="mine", url=URL, event_types=list(DEFAULT))  # type: ignore[arg-type]
    yield endpoint
    client.delete(f"/webhook_endpoints/{endpoint.id}", cast_to=object)


@pytest_asyncio.fixture
async def owed(service: Service, http: httpx.Client, db: Database) -> AsyncIterator[WebhookDelivery]:
    """A delivery that a job's end owes to its callback URL."""
    job_id = ask(http, "POST", "/v1/fine_tuning/jobs", json=job_body(callback_url=URL)).json()["id"]
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        await lifecycle.failed(session, job, {"code": "c", "message": "m", "param": None}, fence=None)
    async with db.transaction() as session:
        owed = ask(http, "GET", f"/v1/fine_tuning/jobs/{job_id}/deliveries").json()["data"]
        [entry] = [entry for entry in owed if entry["endpoint_id"] is None]
        yield await session.get_one(WebhookDelivery, entry["id"])


def ask(http: httpx.Client, method: str, path: str, **given: Any) -> httpx.Response:
    """One request."""
    return http.request(method, path, **given)


@contextmanager
def reached(service: Service, receiver: Receiver) -> Iterator[OpenAI]:
    """The official client of an API that may reach the receiver."""
    with serving(reaching(service, receiver)) as url, OpenAI(base_url=url + "/v1", api_key="lf-alpha") as client:
        yield client


def reaching(service: Service, receiver: Receiver) -> Settings:
    """Settings that allow the receiver."""
    return service.settings.model_copy(update={"webhook_allow": receiver.allow, "webhook_timeout": 5.0})


def keyed(service: Service, url: str) -> Settings:
    """Settings of the command line."""
    return service.settings.model_copy(update={"url": url, "api_key": SecretStr("lf-alpha")})


def verified(secret: str, got: Received) -> Any:
    """What came, as the official client unwraps it."""
    with OpenAI(api_key="none", webhook_secret=secret) as client:
        return client.webhooks.unwrap(got.body, got.headers)


async def settle(db: Database, delivery_id: str, status: str) -> None:
    """End a delivery."""
    async with db.transaction() as session:
        row = await session.get_one(WebhookDelivery, delivery_id)
        row.status, row.finished_at, row.attempts = status, row.created_at, 7


def test_the_official_client_makes_lists_changes_and_deletes_endpoints(client: OpenAI) -> None:
    made = client.webhooks.create(name="n8n", url=URL, event_types=["fine_tuning.job.failed"])
    assert made.signing_secret.startswith("whsec_")
    got = client.webhooks.retrieve(made.id)
    assert (got.name, got.url, got.event_types) == ("n8n", URL, ["fine_tuning.job.failed"])
    assert (got.signing_secret_hint or "").endswith(made.signing_secret[-4:])
    assert made.signing_secret not in got.to_json()
    assert client.webhooks.update(made.id, name="other").name == "other"
    assert next(iter(client.webhooks.list(limit=1))).id == made.id
    deleted = client.webhooks.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError):
        client.webhooks.retrieve(made.id)


def test_the_event_types_are_what_jobs_can_name(client: OpenAI, http: httpx.Client) -> None:
    assert tuple(client.webhooks.event_types.list().data) == EVENT_TYPES
    body = job_body(callback_url=URL, callback_events=["fine_tuning.job.checkpoint"])
    assert http.post("/v1/fine_tuning/jobs", json=body).status_code == 201
    refused = http.post(ENDPOINTS, json={"name": "x", "url": URL, "event_types": ["batch.completed"]})
    assert refused.status_code == 400
    assert "fine_tuning.job.succeeded" in refused.json()["error"]["message"]


def test_an_endpoint_that_names_no_events_is_told_how_jobs_end(http: httpx.Client) -> None:
    made = http.post(ENDPOINTS, json={"name": "x", "url": URL}).json()
    assert made["event_types"] == list(DEFAULT)
    assert http.delete(f"{ENDPOINTS}/{made['id']}").json()["object"] == "webhook_endpoint.deleted"


@pytest.mark.parametrize(
    ("url", "code"), [("http://10.0.0.1/", "callback_not_allowed"), ("ftp://example.org/", "invalid_value")]
)
def test_an_endpoint_leads_only_where_callbacks_may_go(http: httpx.Client, made: Any, url: str, code: str) -> None:
    for path in (ENDPOINTS, f"{ENDPOINTS}/{made.id}"):
        error = http.post(path, json={"name": "x", "url": url}).json()["error"]
        assert (error["code"], error["param"]) == (code, "url")
        assert error["message"].startswith("url ")


def test_a_creation_that_the_client_repeats_by_itself_makes_one_endpoint(http: httpx.Client) -> None:
    body = {"name": "once", "url": URL + "/once"}
    first = http.post(ENDPOINTS, json=body).json()
    again = http.post(ENDPOINTS, json=body, headers={"x-stainless-retry-count": "1"}).json()
    assert again == first
    http.delete(f"{ENDPOINTS}/{first['id']}")


def test_a_change_of_nothing_is_none(http: httpx.Client, made: Any) -> None:
    before = http.get(f"{ENDPOINTS}/{made.id}").json()
    assert http.patch(f"{ENDPOINTS}/{made.id}", json={"name": made.name}).json() == before


def test_an_endpoint_can_be_silenced_and_told_again(http: httpx.Client, made: Any) -> None:
    silent = http.patch(f"{ENDPOINTS}/{made.id}", json={"enabled": False}).json()
    assert silent["disabled_at"]
    assert silent["disabled_reason"]
    told = http.patch(f"{ENDPOINTS}/{made.id}", json={"enabled": True}).json()
    assert (told["disabled_at"], told["disabled_reason"]) == (None, None)


@pytest.mark.parametrize("keep", [True, False])
def test_a_rotated_secret_signs_at_once_and_the_old_one_only_if_it_is_kept(service: Service, keep: bool) -> None:
    with receiving(201) as receiver, reached(service, receiver) as client:
        made = client.webhooks.create(name="r", url=receiver.url, event_types=["fine_tuning.job.failed"])
        rotated = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=keep)
        result = client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
        client.webhooks.delete(made.id)
    assert (result.success, result.status_code) == (True, 201)
    [got] = receiver.received
    assert verified(rotated.signing_secret, got).type == "fine_tuning.job.failed"
    if keep:
        assert verified(made.signing_secret, got).type == "fine_tuning.job.failed"
    else:
        with pytest.raises(openai.InvalidWebhookSignatureError):
            verified(made.signing_secret, got)


def test_an_endpoint_that_does_not_answer_says_so_in_its_test(service: Service) -> None:
    with receiving("close") as receiver, reached(service, receiver) as client:
        made = client.webhooks.create(name="r", url=receiver.url, event_types=["fine_tuning.job.failed"])
        with pytest.raises(openai.BadRequestError, match="did not answer"):
            client.webhooks.test(made.id, event_type="fine_tuning.job.failed")
        client.webhooks.delete(made.id)


def test_the_secret_of_callbacks_is_rotated_and_the_old_one_still_signs(http: httpx.Client) -> None:
    first = http.post("/v1/webhook_secret/rotate").json()["secret"]
    second = http.post("/v1/webhook_secret/rotate").json()
    assert second["secret"] != first
    assert second["also_valid"] >= 1
    assert http.get("/v1/webhook_secret").json() == second


def test_the_secret_of_callbacks_is_for_admins(service: Service) -> None:
    with service.http("beta") as beta:
        for method, path in (("GET", "/v1/webhook_secret"), ("POST", "/v1/webhook_secret/rotate")):
            assert beta.request(method, path).json()["error"]["code"] == "insufficient_scope"


async def test_a_delivery_shows_its_payload_and_can_be_asked_for_again(
    http: httpx.Client, db: Database, owed: WebhookDelivery
) -> None:
    await settle(db, owed.id, "dead")
    dead = ask(http, "GET", "/v1/webhook_deliveries", params={"status": "dead", "limit": 100}).json()["data"]
    assert owed.id in [entry["id"] for entry in dead]
    again = ask(http, "POST", f"/v1/webhook_deliveries/{owed.id}/redeliver").json()
    assert (again["status"], again["finished_at"], again["attempts"]) == ("pending", None, [])
    assert (again["payload"]["id"], again["payload"]["type"]) == (owed.event_id, "fine_tuning.job.failed")
    assert ask(http, "POST", f"/v1/webhook_deliveries/{owed.id}/redeliver").json()["status"] == "pending"


def to_endpoint(http: httpx.Client, endpoint: Any, owed: WebhookDelivery) -> str:
    """The delivery of the same event to an endpoint."""
    found = ask(http, "GET", "/v1/webhook_deliveries", params={"endpoint_id": endpoint.id}).json()["data"]
    return next(entry["id"] for entry in found if entry["job_id"] == owed.job_id)


async def test_what_is_owed_to_an_endpoint_that_is_silenced_is_dead_and_not_asked_for(
    http: httpx.Client, made: Any, owed: WebhookDelivery
) -> None:
    delivery_id = to_endpoint(http, made, owed)
    ask(http, "PATCH", f"{ENDPOINTS}/{made.id}", json={"enabled": False})
    assert ask(http, "GET", f"/v1/webhook_deliveries/{delivery_id}").json()["status"] == "dead"
    refused = ask(http, "POST", f"/v1/webhook_deliveries/{delivery_id}/redeliver")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "webhook_endpoint_disabled")


async def test_an_endpoint_that_moved_gets_what_is_owed_at_its_new_url(
    http: httpx.Client, made: Any, owed: WebhookDelivery
) -> None:
    delivery_id = to_endpoint(http, made, owed)
    ask(http, "PATCH", f"{ENDPOINTS}/{made.id}", json={"url": "http://127.0.0.1:5678/moved"})
    assert ask(http, "GET", f"/v1/webhook_deliveries/{delivery_id}").json()["url"] == "http://127.0.0.1:5678/moved"


async def test_what_waits_for_a_breaker_says_so(http: httpx.Client, db: Database, owed: WebhookDelivery) -> None:
    async with db.transaction() as session:
        until = await lifecycle.now(session) + timedelta(minutes=5)
        host = WebhookHost(project_id=owed.project_id, host=owed.host, failures=10, open_until=until)
        session.add(host)
    entry = ask(http, "GET", f"/v1/webhook_deliveries/{owed.id}").json()
    assert entry["waiting"] == f"host breaker of 127.0.0.1:5678 until {until:%Y-%m-%dT%H:%M:%SZ}"
    assert entry["next_attempt_at"] == int(until.timestamp())
    async with db.transaction() as session:
        await session.delete(host)


def test_the_command_line_makes_tests_and_lists(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(200) as target, serving(reaching(service, target)) as url:
        monkeypatch.setattr("app.client.get_settings", lambda: keyed(service, url))
        run = CliRunner().invoke
        said = run(main, ["webhooks", "create", target.url, "--name", "cli"]).stdout
        endpoint, secret = (re.search(rf"^{prefix}_\S+", said, re.MULTILINE)[0] for prefix in ("whe", "whsec"))  # type: ignore[index]
        assert "answered 200" in run(main, ["webhooks", "test", endpoint]).stdout
        rotated = run(main, ["webhooks", "rotate", endpoint]).stdout
        assert "whsec_" in rotated
        assert secret not in rotated
        assert endpoint in run(main, ["webhooks", "list"]).stdout
        assert run(main, ["webhooks", "deliveries", "--status", "dead"]).exit_code == 0
        assert "whsec_" in run(main, ["webhooks", "rotate"]).stdout
        assert "whsec_" in run(main, ["webhooks", "secret"]).stdout
        assert "is deleted" in run(main, ["webhooks", "delete", endpoint]).stdout
