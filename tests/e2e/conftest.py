"""The whole embedded service, started as a user starts it, and one real job driven through it by the official client."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from app.demo import dataset
from app.demo.receiver import Receiver
from app.embedded.background import Running, start
from app.settings import Settings

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEADLINE = 900


@dataclass
class Finished:
    """One job that has ended, with all a user saw of it."""

    job: FineTuningJob
    events: list[Any]
    callbacks: list[Any]


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Running]:
    state = tmp_path_factory.mktemp("state")
    shared = Settings()
    settings = Settings(state_dir=state, tools_dir=shared.tools, cache_dir=shared.cache)
    running = start(settings, {"LLAMAFLOW_PORT": "0", "LLAMAFLOW_WEBHOOK_ALLOW": receiver.address})
    receiver.secret = running.webhook_secret
    yield running
    running.stop()


def s3_client(service: Running, *, secret: str | None = None) -> Any:
    """boto3 as any user has it."""
    return boto3.client(
        "s3",
        endpoint_url=service.s3_endpoint,
        aws_access_key_id=service.s3_access_key,
        aws_secret_access_key=secret or service.s3_secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )


@pytest.fixture(scope="session")
def client(service: Running) -> OpenAI:
    return OpenAI(base_url=service.url + "/v1", api_key=service.api_key, _strict_response_validation=True)


@pytest.fixture(scope="session")
def finished(service: Running, client: OpenAI, receiver: Receiver) -> Finished:
    s3 = s3_client(service)
    for name, rows in (("train", dataset.training_rows()), ("validation", dataset.validation_rows())):
        s3.put_object(Bucket="llamaflow-data", Key=f"e2e/{name}.jsonl", Body=dataset.jsonl(rows))
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file="s3://llamaflow-data/e2e/train.jsonl",
        validation_file="s3://llamaflow-data/e2e/validation.jsonl",
        suffix="e2e",
        seed=7,
        extra_body={
            "hyperparameters": {"n_epochs": 2, "batch_size": 8, "learning_rate": 2e-3},
            "callback_url": receiver.url,
            "metadata": {"purpose": "e2e"},
        },
    )
    job = wait(client, job.id)
    callbacks = [receiver.events.get(timeout=30)]
    with_rest = time.monotonic() + 2
    while time.monotonic() < with_rest:
        try:
            callbacks.append(receiver.events.get(timeout=0.5))
        except queue.Empty:
            break
    return Finished(job, list(client.fine_tuning.jobs.list_events(job.id, limit=100)), callbacks)


def wait(client: OpenAI, job_id: str) -> FineTuningJob:
    """The job once it has ended."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.5)
    raise AssertionError(f"{job_id} did not end within {DEADLINE} s")


def manifest(service: Running, job: FineTuningJob) -> dict[str, Any]:
    """The manifest beside the adapter on S3."""
    body = s3_client(service).get_object(Bucket="llamaflow-data", Key=f"model/{job.id}/manifest.json")["Body"]
    return json.loads(body.read())  # type: ignore[no-any-return]


def run_folder(service: Running, job: FineTuningJob) -> Path:
    """Where the worker keeps the job's run."""
    return Path(service.state_dir) / "runs" / job.id
