"""What a client may not do to the service before, and after, it has shown a key: slow, huge, ambiguous and too many requests."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from app import protocol
from tests.app.conftest import ROWS, Service, job_body, serving

pytestmark = pytest.mark.db

JOBS = "/v1/fine_tuning/jobs"


@contextmanager
def serving_with(service: Service, **changes: Any) -> Iterator[Service]:
    changed = service.settings.model_copy(update=changes)
    with serving(changed) as url:
        yield Service(url, changed, service.s3)


@contextmanager
def raw(service: Service) -> Iterator[socket.socket]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        yield connection


def answer(connection: socket.socket) -> bytes:
    """Everything until the service closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def head(*lines: str) -> bytes:
    given = [f"POST {JOBS} HTTP/1.1", "host: x", "authorization: Bearer lf-alpha", "content-type: application/json"]
    return "\r\n".join([*given, *lines, "", ""]).encode()


def test_a_head_that_does_not_come_is_hung_up_on(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    for begun in (b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: "):
        with raw(service) as connection:
            connection.sendall(begun)
            assert answer(connection) == b""


def test_a_connection_is_kept_for_the_next_request_and_then_not_for_ever(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with raw(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(1)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HT")
        assert answer(connection).count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("huge", [b"x-huge: " + b"x" * (1 << 20), b"x: y\r\n" * 40_000, b"GET"])
def test_a_huge_head_is_refused_before_it_fills_the_memory(service: Service, huge: bytes) -> None:
    line = b"GET /" + b"x" * 200_000 if huge == b"GET" else b"GET / HTTP/1.1\r\n" + huge
    with raw(service) as connection:
        connection.sendall(line)
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_comes_with_its_head_is_no_head(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_HEAD", 1000)
    monkeypatch.setattr(protocol, "SLICE", 500)
    body = json.dumps(job_body(metadata={"key": "x" * 4000})).encode()
    with raw(service) as connection:
        for _ in range(3):
            connection.sendall(head(f"content-length: {len(body)}") + body)
            assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_stops_coming_is_a_408(service: Service) -> None:
    with serving_with(service, stall_seconds=0.5) as slow:
        for body in (head("content-length: 100000") + b'{"model"', head("transfer-encoding: chunked") + b"1\r\n{\r\n"):
            with raw(slow) as connection:
                connection.sendall(body)
                said = answer(connection)
            assert said.startswith(b"HTTP/1.1 408 ")
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


def test_an_upload_that_stops_coming_is_a_408_and_leaves_nothing(service: Service) -> None:
    with serving_with(service, stall_seconds=0.5) as slow, raw(slow) as connection:
        connection.sendall(uploading())
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_content_length_that_lies_is_believed_only_as_far_as_bytes_come(service: Service) -> None:
    with raw(service) as connection:
        connection.sendall(head("content-length: 5", "connection: close") + json.dumps(job_body()).encode())
        assert answer(connection).startswith(b"HTTP/1.1 400 ")
    for lines in (
        ("content-length: 5", "transfer-encoding: chunked"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: -1",),
    ):
        with raw(service) as connection:
            connection.sendall(head(*lines) + b"0\r\n\r\n")
            assert answer(connection).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"model": "a", "model": "b"}', '"model" is given twice'),
        (b'{"a": {"x": 1, "x": 1}}', '"x" is given twice'),
        (b'{"hyperparameters": {"learning_rate": NaN}}', "NaN"),
        (b'{"metadata": {"a": -Infinity}}', "-Infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 30_000 + b"]" * 30_000, "nested"),
        (b'{"metadata": ' + b'{"a":' * 400 + b"1" + b"}" * 400 + b"}", "metadata"),
        (b'{"seed": 1e999}', "seed"),
        (b'{"model": "\xff"}', "UTF-8"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [JOBS, "/v1/files", "/v1/chat/completions"])
def test_json_that_can_be_read_in_two_ways_or_hardly_at_all_is_a_400(
    http: httpx.Client, path: str, body: bytes, words: str
) -> None:
    said = http.post(path, content=body, headers={"content-type": "application/json"})
    assert said.status_code == 400
    if path == JOBS:
        assert words in said.json()["error"]["message"]


def test_nesting_just_short_of_too_deep_is_a_400_everywhere(http: httpx.Client) -> None:
    for depth in range(100, 1000, 60):
        for opened, closed in ((b'{"a":', b"}"), (b"[", b"]")):
            body = (
                b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "x": '
                + opened * depth
                + b"1"
                + closed * depth
                + b"}"
            )
            for path in (JOBS, "/v1/files", "/v1/chat/completions"):
                said = http.post(path, content=body, headers={"content-type": "application/json"})
                assert said.status_code in (400, 404, 503), (depth, path, said.text)


def test_a_key_may_ask_so_often_and_no_more(service: Service) -> None:
    with serving_with(service, rate_limit=5) as limited, limited.http() as http, limited.http("beta") as other:
        answers = [http.get("/v1/models") for _ in range(30)]
        refused = next(said for said in answers if said.status_code == 429)
        assert [said.status_code for said in answers[:10]] == [200] * 10
        assert other.get("/v1/models").status_code == 200
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "LLAMAFLOW_RATE_LIMIT" in error["message"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        time.sleep(1)
        assert http.get("/v1/models").status_code == 200


def test_guessing_keys_is_slowed_and_known_keys_go_on(service: Service) -> None:
    with serving_with(service, auth_failures=5) as limited, limited.http() as known:
        assert known.get(JOBS).status_code == 200
        with httpx.Client(base_url=limited.url, trust_env=False) as guesser:
            said = [guesser.get(JOBS, headers={"authorization": f"Bearer lf-{n}"}) for n in range(7)]
        assert [answer.status_code for answer in said] == [401] * 5 + [429] * 2
        assert "LLAMAFLOW_AUTH_FAILURES" in said[-1].json()["error"]["message"]
        assert 1 <= int(said[-1].headers["retry-after"]) <= 60
        assert known.get(JOBS).status_code == 200


def test_a_key_has_only_so_many_open_jobs(service: Service, http: httpx.Client) -> None:
    file = http.post("/v1/files", files={"file": ("t.jsonl", ROWS)}, data={"purpose": "fine-tune"}).json()["id"]
    open_now = sum(job["finished_at"] is None for job in http.get(JOBS, params={"limit": 1000}).json()["data"])
    with serving_with(service, max_open_jobs=open_now + 2) as limited, limited.http() as mine:
        keyed = {"idempotency-key": "open-jobs"}
        made = [mine.post(JOBS, json=job_body(training_file=file), headers=keyed if n == 0 else {}) for n in range(3)]
        assert [said.status_code for said in made] == [201, 201, 429]
        error = made[-1].json()["error"]
        assert error["code"] == "too_many_open_jobs"
        assert "LLAMAFLOW_MAX_OPEN_JOBS" in error["message"]
        assert 1 <= int(made[-1].headers["retry-after"]) <= 60
        assert mine.post(JOBS, json=job_body(training_file=file), headers=keyed).json()["id"] == made[0].json()["id"]
        assert mine.post(f"{JOBS}/{made[0].json()['id']}/cancel").json()["status"] == "cancelled"
        assert mine.post(JOBS, json=job_body(training_file=file)).status_code == 201


def uploading(*lines: str) -> bytes:
    """The beginning of an upload that says it is longer."""
    form = ("content-type: multipart/form-data; boundary=b", "content-length: 100000")
    given = head(*form, *lines).replace(JOBS.encode(), b"/v1/files").replace(b"content-type: application/json\r\n", b"")
    return given + b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'


def test_a_key_has_only_so_many_uploads_at_once(service: Service) -> None:
    with serving_with(service, max_uploads=1) as limited, raw(limited) as connection, limited.http() as http:
        connection.sendall(uploading("expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # it has its place and reads
        form = {"files": {"file": ("t.jsonl", ROWS)}, "data": {"purpose": "fine-tune"}}
        said = http.post("/v1/files", **form)
        assert (said.status_code, said.json()["error"]["code"]) == (429, "too_many_uploads")
        assert "LLAMAFLOW_MAX_UPLOADS" in said.json()["error"]["message"]
        connection.close()
        deadline = time.monotonic() + 10
        while http.post("/v1/files", **form).status_code == 429:
            assert time.monotonic() < deadline


def test_an_address_is_taken_from_a_proxys_header_only_where_settings_name_the_proxy(service: Service) -> None:
    for proxies, codes in (([], {401, 429}), (["127.0.0.1"], {401})):
        with serving_with(service, auth_failures=1, proxies=proxies) as limited:
            found = {
                httpx.get(
                    limited.url + JOBS,
                    headers={"authorization": "Bearer lf-x", "x-forwarded-for": f"192.0.2.{n}"},
                    trust_env=False,
                ).status_code
                for n in range(4)
            }
            assert found == codes
