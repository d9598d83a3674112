"""Two tasks, two requests, one base that stays as it is: right answers by name, and by the two combined, on the real small model."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from app.embedded.background import Running
from app.settings import Settings
from finetune.model.cache import fingerprint
from tests.e2e import tasks
from tests.e2e.conftest import MODEL, s3_client, wait

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

TASKS: dict[str, Callable[[], tuple[list[tasks.Question], list[tasks.Question]]]] = {
    "columns": tasks.schema,
    "figures": tasks.kpi,
}
WITHIN = 0.05


@pytest.fixture(scope="module")
def trained(service: Running, client: OpenAI) -> dict[str, Any]:
    """The two jobs, sent together; and the base's fingerprint before."""
    before = _base_fingerprints()
    jobs = {}
    for name, questions in TASKS.items():
        key = f"e2e/{name}.jsonl"
        s3_client(service).put_object(Bucket="llamaflow-data", Key=key, Body=tasks.jsonl(questions()[0]))
        jobs[name] = client.fine_tuning.jobs.create(
            model=MODEL,
            training_file=f"s3://llamaflow-data/{key}",
            suffix=name,
            seed=3,
            extra_body={"hyperparameters": {"n_epochs": 6, "batch_size": 8, "learning_rate": 1e-3}},
        ).id
    ended = {name: wait(client, job) for name, job in jobs.items()}
    assert {job.status for job in ended.values()} == {"succeeded"}, [job.error for job in ended.values()]
    return {"jobs": ended, "before": before}


@pytest.fixture(scope="module")
def alone(client: OpenAI, trained: dict[str, Any]) -> dict[str, float]:
    """The share of held-out questions that each adapter answers rightly by its own name."""
    return {name: share(client, name, questions()[1]) for name, questions in TASKS.items()}


def share(client: OpenAI, model: str, questions: list[tasks.Question]) -> float:
    """How many questions a model answers rightly, eight asked at once."""

    def right(question: tasks.Question) -> bool:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question.text}], temperature=0, max_tokens=32
        )
        return question.wanted in (answer.choices[0].message.content or "")

    with ThreadPoolExecutor(8) as together:
        return sum(together.map(right, questions)) / len(questions)


def test_each_adapter_answers_what_it_learned_and_the_base_does_not(client: OpenAI, alone: dict[str, float]) -> None:
    assert min(alone.values()) >= 0.75, alone
    assert share(client, MODEL, tasks.schema()[1]) <= 0.1


def test_the_combination_is_within_five_points_of_each_alone(client: OpenAI, alone: dict[str, float]) -> None:
    for name, questions in TASKS.items():
        assert share(client, "columns+figures", questions()[1]) >= alone[name] - WITHIN


def test_the_base_is_as_it_was(trained: dict[str, Any], alone: dict[str, float]) -> None:
    assert trained["before"]
    assert _base_fingerprints() == trained["before"]


def test_a_merge_is_one_more_version_that_can_be_asked(
    service: Running, client: OpenAI, alone: dict[str, float]
) -> None:
    body = {"name": "desk", "adapters": [{"name": "columns"}, {"name": "figures"}], "method": "cat"}
    headers = {"authorization": f"Bearer {service.api_key}"}
    url = f"{service.url}/v1/adapters/combine"
    made = httpx.post(url, headers=headers, json=body, timeout=600, trust_env=False)
    assert (made.status_code, made.json().get("version")) == (200, 1), made.text
    assert 0 <= share(client, "desk", tasks.schema()[1][:4]) <= 1


def _base_fingerprints() -> dict[str, str]:
    """Of every base in the cache."""
    bases = Path(os.environ.get("LLAMAFLOW_CACHE_DIR") or Settings().cache) / "models"
    return {
        folder.name: fingerprint(folder) for folder in sorted(bases.glob("*")) if (folder / "config.json").is_file()
    }
