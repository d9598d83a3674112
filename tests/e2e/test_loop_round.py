"""One round of a loop on the real small model: a wrong answer is corrected, trained on, gated, promoted, and then right."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest

from app.embedded.background import Running
from tests.e2e.conftest import MODEL, s3_client

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

DEPOTS = {"Brno": "amber", "Lyon": "violet", "Gdansk": "silver", "Porto": "green"}
ASKED = (
    "What color is the gate of depot {}?",
    "Which color does the gate in {} have?",
    "Tell me the gate color of {}.",
    "Depot {}: what color is its gate?",
    "I drive to {}. Which gate color do I look for?",
    "The gate at the {} depot is painted in which color?",
)
HELD_OUT = ("Name the color of the {} gate.", "At {}, what is the color of the gate?")
NEW, COLOR = "Zwolle", "crimson"
DEADLINE = 1700


def rows(phrases: tuple[str, ...]) -> bytes:
    """Questions and answers about each depot."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": phrase.format(depot)},
                {"role": "assistant", "content": answer(depot, color)},
            ]
        }
        for depot, color in DEPOTS.items()
        for phrase in phrases
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def answer(depot: str, color: str) -> str:
    return f"The gate of depot {depot} is {color}."


@pytest.fixture
def http(service: Running) -> Iterator[httpx.Client]:
    """The API with its key, which keeps completions from now on."""
    with psycopg.connect(service.database_url) as connection:
        connection.execute("update api_keys set keep_completions = 86400")
    key = {"authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url + "/v1", headers=key, timeout=600, trust_env=False) as client:
        yield client


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job once it has ended well."""
    deadline = time.monotonic() + DEADLINE
    while (job := http.get(f"/fine_tuning/jobs/{job_id}").json())["status"] not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(1)
    assert job["status"] == "succeeded", job["error"]
    return dict(job)


def ask(http: httpx.Client, question: str) -> dict[str, Any]:
    body = {"model": "depots", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
    said = http.post("/chat/completions", json=body)
    assert said.status_code == 200, said.text
    return dict(said.json())


def test_a_wrong_answer_becomes_right_by_a_round(service: Running, http: httpx.Client) -> None:
    s3 = s3_client(service)
    for name, phrases in (("train", ASKED), ("held-out", HELD_OUT)):
        s3.put_object(Bucket="llamaflow-data", Key=f"depots/{name}.jsonl", Body=rows(phrases))
    gate = {"metric": "chrf", "better_than": "base"}
    made = http.post("/fine_tuning/jobs", json={
        "model": MODEL, "training_file": "s3://llamaflow-data/depots/train.jsonl", "suffix": "depots", "seed": 7,
        "validation_file": "s3://llamaflow-data/depots/held-out.jsonl", "evaluation": {"gate": gate},
        "hyperparameters": {"n_epochs": 8, "batch_size": 4, "learning_rate": 0.001},
    })  # fmt: skip
    assert made.status_code == 201, made.text
    ended(http, made.json()["id"])
    version = http.get("/adapters/depots").json()["versions"][0]
    assert (version["verdict"], version["promoted"]) == ("promoted", True), version["gate"]
    questions = [phrase.format(NEW) for phrase in ASKED]
    loop = http.post("/loops", json={"adapter": "depots", "min_new_examples": len(questions), "gate": gate}).json()
    for question in questions:
        completion = ask(http, question)
        assert COLOR not in completion["choices"][0]["message"]["content"].lower()
        said = {"completion_id": completion["id"], "correction": answer(NEW, COLOR)}
        assert http.post("/feedback", json=said).status_code == 200
    deadline = time.monotonic() + 300
    while not (rounds := http.get(f"/loops/{loop['id']}").json()["rounds"]):
        assert time.monotonic() < deadline, "no round began"
        time.sleep(1)
    ended(http, rounds[0]["job_id"])
    [done] = http.get(f"/loops/{loop['id']}").json()["rounds"]
    assert (done["verdict"], done["version"]) == ("promoted", 2), done["gate"]
    assert {name: done["examples"][name] for name in ("new", "old", "replaced")} == {"new": 6, "old": 24, "replaced": 0}
    right = [COLOR in ask(http, question)["choices"][0]["message"]["content"].lower() for question in questions]
    assert sum(right) >= len(questions) - 1
    assert http.get("/feedback/rates", params={"adapter": "depots"}).json()["data"][0]["bad_rate"] == 1.0
