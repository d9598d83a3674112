"""Every answer that is an error has the one shape, an id and a sentence: the framework's, the limits', and those of parts that are down."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import structlog
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy import text

from app import db as database
from app.db import Database
from tests.app.conftest import ROWS, Service, job_body, serving

pytestmark = pytest.mark.db

JOBS = "/v1/fine_tuning/jobs"
SHAPE = {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("GET", "/", 404, "unknown_url", "/docs"),
        ("GET", "/v1/fine_tuning/job", 404, "unknown_url", "Did you mean /v1/fine_tuning/jobs?"),
        ("GET", "/v1/fine_tuning/jobs/", 404, "unknown_url", "Did you mean /v1/fine_tuning/jobs?"),
        ("PUT", JOBS, 405, "method_not_allowed", "only "),
        ("GET", f"{JOBS}/ftjob-none", 404, "job_not_found", "ftjob-none"),
        ("GET", f"{JOBS}/%00", 400, "invalid_value", "NUL"),
        ("GET", f"{JOBS}?limit=0", 400, "invalid_value", "limit must be at least 1"),
        ("GET", f"{JOBS}?limit=x", 400, "invalid_value", 'limit must be a whole number, not "x"'),
        ("GET", "/v1/files?order=up", 400, "invalid_value", "'asc' or 'desc'"),
        ("GET", "/v1/files/file-none", 404, "file_not_found", "file-none"),
        ("GET", "/v1/models/org%2Fnone", 404, "model_not_found", "org/none"),
        ("GET", "/v1/adapters/none", 404, "adapter_not_found", "none"),
    ],
)
def test_the_frameworks_own_errors_have_our_shape(
    http: httpx.Client, method: str, path: str, status: int, code: str, words: str
) -> None:
    answer = http.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], set(error)) == (status, code, SHAPE)
    assert words in error["message"]
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, "missing_api_key"), ({"authorization": "Bearer lf-wrong"}, "invalid_api_key"), ({"authorization": "Basic bGY6"}, "missing_api_key"), ({"authorization": "Bearer"}, "missing_api_key")],
)  # fmt: skip
def test_a_request_without_a_known_key_is_refused(service: Service, headers: dict[str, str], code: str) -> None:
    answer = httpx.get(service.url + JOBS, headers=headers, trust_env=False)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (401, "authentication_error", code)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_that_may_only_read_cannot_write(service: Service) -> None:
    with service.http("gamma") as gamma:
        assert gamma.get(JOBS).status_code == 200
        refused = gamma.post(JOBS, json=job_body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")


def test_an_empty_organization_header_is_fine(http: httpx.Client) -> None:
    assert http.get(JOBS, headers={"openai-organization": "", "openai-project": ""}).status_code == 200


def test_half_of_a_surrogate_pair_breaks_nothing(http: httpx.Client) -> None:
    body = b'{"model": "a\\ud800", "messages": [{"role": "user", "content": "x"}]}'
    answer = http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) == SHAPE


@pytest.mark.parametrize("known_length", [True, False])
def test_a_huge_body_is_refused_by_bytes_seen(http: httpx.Client, known_length: bool) -> None:
    body = b'{"model": "' + b"x" * (1 << 20) + b'"}'
    content = body if known_length else iter([body[:70000], body[70000:]])
    answer = http.post(JOBS, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert "65,536 bytes" in answer.json()["error"]["message"]


def test_a_request_id_is_kept_if_it_is_harmless(http: httpx.Client) -> None:
    assert http.get("/healthz", headers={"x-request-id": "n8n-42.a_b"}).headers["x-request-id"] == "n8n-42.a_b"
    assert http.get("/healthz", headers={"x-request-id": "a b<script>"}).headers["x-request-id"].startswith("req_")


def test_a_log_line_has_what_is_needed_and_no_secret(http: httpx.Client) -> None:
    with structlog.testing.capture_logs() as lines:
        http.get(JOBS, params={"metadata[k]": "secret-value"}, headers={"x-request-id": "line-1"})
    (line,) = [line for line in lines if line.get("request_id") == "line-1"]
    assert (line["method"], line["path"], line["status"], line["project"]) == ("GET", JOBS, 200, "alpha")
    assert line["ms"] > 0
    assert "secret-value" not in str(lines)
    assert "lf-alpha" not in str(lines)


def test_every_answer_has_security_headers_and_the_pages_work_offline(service: Service) -> None:
    with service.http() as http:
        page = http.get("/docs")
        assert http.get(JOBS).headers["content-security-policy"].startswith("default-src 'none'")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "https://" not in page.text
        assert http.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_the_document_knows_the_key_and_the_one_shape_of_errors(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"
    create = document["paths"][JOBS]["post"]
    assert create["security"] == [{"API key": []}]
    assert "422" not in create["responses"]
    assert set(create["responses"]) == {"201", "400", "401", "403", "408", "409", "413", "429", "500", "503"}
    assert create["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert document["components"]["schemas"]["Hyperparameters"]["properties"]["n_epochs"]["anyOf"][0]["maximum"] == 50


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def without(service: Service, **settings: Any) -> Iterator[httpx.Client]:
    changed = service.settings.model_copy(update=settings)
    with serving(changed) as url, Service(url, changed, service.s3).http() as http:
        yield http


def test_a_database_that_is_down_is_a_503_that_says_when_to_come_back(service: Service) -> None:
    away = SecretStr(f"postgresql://u:p@127.0.0.1:{closed_port()}/x")
    with without(service, database_url=away) as http:
        answer = http.get(JOBS)
        ready = http.get("/readyz")
        assert http.get("/healthz").json() == {"status": "ok"}
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert ready.status_code == 503
    assert {name: part["ok"] for name, part in ready.json().items() if name != "status"} == {
        "database": False,
        "migrations": False,
        "s3": True,
    }


def test_s3_that_is_down_is_a_503_only_where_it_is_needed(service: Service, client: OpenAI) -> None:
    file = client.files.create(file=("t.jsonl", ROWS), purpose="fine-tune")
    with without(service, s3_endpoint=f"http://127.0.0.1:{closed_port()}") as http:
        answer = http.post(JOBS, json=job_body())
        by_id = http.post(JOBS, json=job_body(training_file=file.id))
        ready = http.get("/readyz").json()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "s3_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert by_id.status_code == 201
    assert (ready["database"]["ok"], ready["s3"]["ok"]) == (True, False)


async def test_s3_that_hangs_is_waited_for_three_seconds(service: Service) -> None:
    async with hanging() as port:
        with serving(service.settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{port}"})) as url:
            headers = {"authorization": "Bearer lf-alpha"}
            async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=20) as http:
                answer = await http.post(JOBS, json=job_body())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "s3_unavailable")
    assert 3 <= answer.elapsed.total_seconds() < 5


@asynccontextmanager
async def hanging() -> AsyncIterator[int]:
    """A server that takes connections and never answers."""
    over = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield int(server.sockets[0].getsockname()[1])
    over.set()
    server.close()


async def test_connections_that_were_cut_are_made_anew(http: httpx.Client, db: Database) -> None:
    await asyncio.to_thread(http.get, JOBS)
    async with db.transaction() as session:
        others = "from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()"
        cut = list((await session.execute(text(f"select pid, pg_terminate_backend(pid) {others}"))).scalars())
        left = len(cut)
        assert left > 0
        while left:  # each ends when it reads the signal; the one that asks is not among them
            await session.execute(text("select pg_stat_clear_snapshot()"))
            asked = text("select count(*), pg_sleep(0.02) from pg_stat_activity where pid = any(:cut)")
            left = (await session.execute(asked, {"cut": cut})).scalar_one()
    answers = [await asyncio.to_thread(http.get, JOBS) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}


async def test_a_job_that_somebody_hung_on_to_is_not_waited_for_for_ever(
    service: Service, http: httpx.Client, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 1)
    job = (await asyncio.to_thread(http.post, JOBS, json=job_body())).json()["id"]
    with without(service) as hurried:
        async with db.transaction() as session:
            await session.execute(text("select 1 from jobs where id = :id for update"), {"id": job})
            answer = await asyncio.to_thread(hurried.post, f"{JOBS}/{job}/cancel")
        after = await asyncio.to_thread(hurried.post, f"{JOBS}/{job}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
    assert "being done to this" in answer.json()["error"]["message"]
    assert (after.status_code, after.json()["status"]) == (200, "cancelled")


def test_all_parts_are_ready(http: httpx.Client) -> None:
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["migrations"]["message"].startswith("At ")
