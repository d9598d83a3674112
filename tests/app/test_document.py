"""The API against its own document: requests made from openapi.json with a real key, database and S3, and answers as it says.

Each operation gets good requests and broken ones. No answer may be a 500, a status or a shape that the document does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi import checks as conformance

from tests.app.conftest import ROWS, Service, serving

pytestmark = pytest.mark.db

SEED = 20261121
CHECKS = (
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
)
NO_ENGINE = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""Answers 503 here: no engine is set up."""
STREAMS = {"stream", "follow"}
"""Asked for, an answer has no end of its own."""


@pytest.fixture(scope="module")
def asked(service: Service) -> Iterator[tuple[Any, requests.Session]]:
    """The document's operations, and a client with a key that may ask as often as it likes."""
    generous = service.settings.model_copy(update={"max_open_jobs": 1_000_000, "rate_limit": 1e6, "stall_seconds": 5.0})
    with serving(generous) as url, requests.Session() as session:
        session.trust_env = False
        session.headers["authorization"] = "Bearer lf-alpha"
        session.post(f"{url}/v1/files", files={"file": ("t.jsonl", ROWS)}, data={"purpose": "fine-tune"}, timeout=30)
        document = session.get(f"{url}/openapi.json", timeout=120).json()
        found = schemathesis.openapi.from_dict(document)
        found.config.update(base_url=url)
        yield found, session


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    "model", "training_file", "hyperparameters", "method", "lora", "data", "evaluation", "output", "execution", "metadata",
    "messages", "prompt", "input", "stop", "tools", "stream_options", "name", "url", "event_types", "s3_uri", "purpose",
    "filename", "bytes", "part_ids", "version", "files", "object", "kind", "events", "id",
)  # fmt: skip
"""Of fields, so that a body may be nearly right."""
BODIES = JSON | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6)


def is_endless(case: Any) -> bool:
    """Whether a request asks for a live stream."""
    query, headers = case.query or {}, case.headers or {}
    return bool(STREAMS & set(query)) or "event-stream" in str(headers).lower()


def ask_all(asked: tuple[Any, requests.Session], examples: int) -> int:
    """Send `examples` requests to each operation and judge the answers; how many there were."""
    document, session = asked
    sent = 0
    for result in document.get_all_operations():
        operation = result.ok()

        @seed(SEED)
        @settings(
            max_examples=examples, database=None, deadline=None, phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck), print_blob=False,
        )  # fmt: skip
        @given(
            case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        def one(case: Any) -> None:
            nonlocal sent
            if is_endless(case):
                return
            sent += 1
            answer = case.call(session=session, timeout=30)
            assert answer.status_code < 500 or (answer.status_code == 503 and case.operation.path in NO_ENGINE), (
                answer.text
            )
            case.validate_response(answer, checks=CHECKS)

        one()
    return sent


def ask_anything(asked: tuple[Any, requests.Session], examples: int) -> int:
    """Send any JSON to every operation that takes some; how many bodies there were."""
    document, session = asked
    operations = [result.ok() for result in document.get_all_operations()]
    return sum(throw_at(each, session, examples) for each in operations if each.method.lower() != "get")


def throw_at(operation: Any, session: requests.Session, examples: int) -> int:
    """Send any JSON to one operation, and judge the answers."""
    url = operation.base_url + operation.path.replace("{", "").replace("}", "")
    sent = 0

    @seed(SEED)
    @settings(
        max_examples=examples, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(body=BODIES)
    def one(body: Any) -> None:
        nonlocal sent
        sent += 1
        content = json.dumps(body).encode()  # NaN and Infinity as Python writes them
        headers = {"content-type": "application/json"}
        answer = session.request(operation.method, url, data=content, headers=headers, timeout=30)
        if answer.status_code >= 300:
            assert 400 <= answer.status_code < 500 or (answer.status_code == 503 and operation.path in NO_ENGINE)
            error = answer.json()["error"]
            assert {"message", "type", "param", "code"} <= set(error)
            assert error["message"]

    one()
    return sent


def test_any_json_is_taken_or_refused_in_good_form(asked: tuple[Any, requests.Session]) -> None:
    assert ask_anything(asked, 6) > 100


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_json_is_taken_or_refused_in_good_form_at_length(asked: tuple[Any, requests.Session]) -> None:
    assert ask_anything(asked, 300) > 5000


def test_answers_are_what_the_document_says(asked: tuple[Any, requests.Session]) -> None:
    print(f"seed {SEED}")
    assert ask_all(asked, 6) > 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_answers_are_what_the_document_says_at_length(asked: tuple[Any, requests.Session]) -> None:
    print(f"seed {SEED}")
    assert ask_all(asked, 200) > 1000
