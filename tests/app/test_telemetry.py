"""What no log line holds, and what every answer carries."""

from __future__ import annotations

import logging
import re

import httpx
import pytest
import structlog

from app import documentation
from app.jobs.cli import plain
from app.jobs.redact import Redactor
from app.settings import Settings
from app.telemetry import configure
from tests.app.conftest import Service, job_body

JOBS = "/v1/fine_tuning/jobs"


def redact(line: str) -> str:
    return Redactor([]).redacted(line.encode()).decode()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ('{"headers": "Authorization: Bearer abc.def-123"}', "abc.def-123"),
        ("key lf-abcdefghijklmnopqrstuvwxyz0123456789_-ABCDE is wrong", "lf-abcdefg"),
        ("GET https://s3/x?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=0a1b2c&a=b", "0a1b2c"),
        ("GET https://s3/x?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=0a1b2c&a=b", "AKIA"),
        ("?AWSAccessKeyId=AKIA9&Signature=c2ln%3D&Expires=1", "c2ln"),
        ("connecting to postgresql+psycopg://llamaflow:pass%2Fw%40rd@127.0.0.1:5432/llamaflow", "pass%2Fw"),
        ("postgres://u:hunter2@db/x failed", "hunter2"),
        ("secret whsec_NjRoZXg2NGhleDY0aGV4 here", "NjRo"),
        ("HF says no to hf_AbCdEfGhIjKlMnOpQrStUvWx", "hf_AbC"),
        ("/cb?token=abcdef&x=1", "abcdef"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_a_line(line: str, secret: str) -> None:
    assert secret in line
    assert secret not in redact(line)
    assert "[redacted]" in redact(line)


@pytest.mark.unit
def test_other_lines_stay_as_they_are() -> None:
    for line in (
        '{"event": "request", "path": "/v1/files/file-abc", "ms": 1.5}',
        "lf-alpha",
        "Bearer",
        "a token of step 3",
    ):
        assert redact(line) == line


@pytest.mark.unit
def test_the_command_line_shows_text_of_others_without_codes_that_steer_a_terminal() -> None:
    assert plain("a\x1b[2Jb\x07\x9bc\r\n\td\x00é\U0001f600") == "a\ufffd[2Jb\ufffd\ufffdc\ufffd\n\td\ufffdé\U0001f600"


@pytest.mark.unit
def test_a_traceback_of_a_library_is_redacted_too(capsys: pytest.CaptureFixture[str]) -> None:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    try:
        configure(Settings())
        try:
            raise ValueError("Bearer sk-very-secret-value")
        except ValueError:
            logging.getLogger("somebody").exception("it failed")
    finally:
        logging.getLogger().handlers, logging.getLogger().level = handlers, level
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "ValueError" in said
    assert "very-secret" not in said


@pytest.mark.db
def test_a_path_cannot_begin_a_line_of_its_own_in_the_log(http: httpx.Client) -> None:
    with structlog.testing.capture_logs() as lines:
        http.get("/v1/files/x%0d%0a2026-01-01%20forged%1b[31m", headers={"x-request-id": "forged-1"})
    (line,) = [line for line in lines if line.get("request_id") == "forged-1"]
    assert line["path"].isprintable()
    assert "\n" not in line["path"]


@pytest.mark.db
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", JOBS, 200), ("GET", "/none", 404), ("PUT", JOBS, 405), ("GET", "/healthz", 200), ("GET", "/docs", 200), ("GET", "/openapi.json", 200), ("OPTIONS", JOBS, 405)],
)  # fmt: skip
def test_every_answer_carries_the_headers_of_safety(http: httpx.Client, method: str, path: str, status: int) -> None:
    said = http.request(
        method, path, headers={"origin": "https://evil.example", "access-control-request-method": "POST"}
    )
    assert said.status_code == status
    assert said.headers["x-content-type-options"] == "nosniff"
    assert said.headers["x-frame-options"] == "DENY"
    assert said.headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in said.headers["content-security-policy"]
    assert not [name for name in said.headers if name.startswith("access-control")]
    assert "server" not in said.headers
    assert said.headers["cache-control"] == ("no-cache" if path == "/docs" else "no-store")


@pytest.mark.db
def test_an_answer_with_an_etag_may_be_kept_by_its_caller_and_by_nobody_else(http: httpx.Client) -> None:
    job = http.post(JOBS, json=job_body()).json()["id"]
    said = http.get(f"{JOBS}/{job}")
    assert said.headers["cache-control"] == "private, no-cache"
    assert http.get(f"{JOBS}/{job}", headers={"if-none-match": said.headers["etag"]}).status_code == 304


@pytest.mark.db
def test_the_page_of_documentation_runs_no_script_but_its_own(service: Service) -> None:
    said = httpx.get(service.url + "/docs", trust_env=False)
    policy = said.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert policy == documentation.policy(said.text)
    assert policy.count("'sha256-") == len(re.findall(r"<script>", said.text)) == 1
    sources = re.findall(r'(?:src|href)="([^"]*)"', said.text)
    assert sources
    assert all(source.startswith("/static-offline-docs/") for source in sources)
    assert documentation.policy(said.text.replace("SwaggerUIBundle({", "SwaggerUIBundle({x:1,")) != policy
    assert not re.search(r"\son\w+=|style=", said.text)
