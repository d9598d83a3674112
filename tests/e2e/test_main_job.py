"""The main job on real parts: dataset on S3 → request → Nextflow → adapter on S3 → signed callback → answers."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from botocore.exceptions import ClientError
from openai import OpenAI

from app.demo import dataset
from app.embedded.background import Running
from app.settings import Settings
from tests.e2e.conftest import MODEL, Finished, manifest, run_folder, s3_client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

PROCESSES = {"DOWNLOAD_DATA", "FETCH_MODEL", "PREPARE_DATA", "FINE_TUNE", "EVALUATE", "UPLOAD_MODEL"}


def test_the_job_succeeds_and_says_so_in_the_clients_own_words(finished: Finished) -> None:
    assert finished.job.error is None
    assert finished.job.status == "succeeded"
    assert finished.job.fine_tuned_model == f"ft:{MODEL}:default:e2e:{finished.job.id[-8:]}"
    messages = [event.message for event in finished.events]
    assert messages[0] == "The job has successfully completed"
    assert messages[-1] == f"Created fine-tuning job: {finished.job.id}"
    assert "Fine-tuning job started" in messages


def test_metrics_events_show_a_falling_loss(finished: Finished) -> None:
    metrics = [event.data for event in reversed(finished.events) if event.type == "metrics"]
    losses = [data["train_loss"] for data in metrics if "train_loss" in data]
    assert len(losses) >= 3
    assert losses[-1] < losses[0] / 2


def test_nextflow_really_ran_every_process(service: Running, finished: Finished) -> None:
    traces = list(run_folder(service, finished.job).rglob("*trace*.t*"))
    rows = [
        row for path in traces for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t")
    ]
    assert {row["process"] for row in rows} == PROCESSES
    assert {row["status"] for row in rows} == {"COMPLETED"}


def test_the_database_is_a_real_postgres(service: Running) -> None:
    with psycopg.connect(service.database_url) as connection:
        row = connection.execute("select version(), (select count(*) from jobs)").fetchone()
    assert row is not None
    assert row[0].startswith("PostgreSQL 1")
    assert row[1] >= 1


def test_a_wrong_s3_secret_is_refused(service: Running) -> None:
    with pytest.raises(ClientError) as refused:
        s3_client(service, secret="wrong" * 8).list_objects_v2(Bucket="llamaflow-data")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_one_signed_callback_came(finished: Finished) -> None:
    assert [(event.type, event.data.id) for event in finished.callbacks] == [
        ("fine_tuning.job.succeeded", finished.job.id)
    ]


def test_the_manifest_names_every_file_with_its_sha256(service: Running, finished: Finished) -> None:
    s3 = s3_client(service)
    listed = manifest(service, finished.job)["files"]
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= {file["path"] for file in listed}
    for file in listed:
        body = s3.get_object(Bucket="llamaflow-data", Key=f"model/{finished.job.id}/{file['path']}")["Body"].read()
        assert hashlib.sha256(body).hexdigest() == file["sha256"], file["path"]


def test_model_s3_txt_names_where_the_adapter_lies(service: Running, finished: Finished) -> None:
    body = (
        s3_client(service)
        .get_object(Bucket="llamaflow-data", Key=f"model/{finished.job.id}/model_s3.txt")["Body"]
        .read()
    )
    assert f"s3://llamaflow-data/model/{finished.job.id}/" in body.decode()


def ask(client: OpenAI, model: str) -> float:
    """Share of every second exam question the model answers right."""
    questions = dataset.exam()[::2]
    right = 0
    for question in questions:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question.text}], max_tokens=24, temperature=0
        )
        right += question.right(answer.choices[0].message.content or "")
    return right / len(questions)


def test_the_tuned_model_knows_what_the_base_does_not(client: OpenAI, finished: Finished) -> None:
    assert finished.job.fine_tuned_model is not None
    assert ask(client, MODEL) <= 0.2
    assert ask(client, finished.job.fine_tuned_model) >= 0.4


def test_a_response_says_what_a_chat_says_whole_and_streamed(client: OpenAI, finished: Finished) -> None:
    model, question = finished.job.fine_tuned_model or "", dataset.exam()[0].text
    chat = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=12, temperature=0
    )
    asked: Any = {"model": model, "input": question, "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert whole.output_text == chat.choices[0].message.content == "".join(deltas)
    assert client.responses.retrieve(whole.id).output_text == whole.output_text


def test_the_result_file_is_a_csv_of_every_step(client: OpenAI, finished: Finished) -> None:
    rows = list(csv.DictReader(io.StringIO(client.files.content(finished.job.result_files[0]).text)))
    assert [int(row["step"]) for row in rows] == list(range(1, 33))
    assert {"train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"} <= set(rows[0])


def test_every_fact_is_there_for_the_client(client: OpenAI, finished: Finished) -> None:
    assert finished.job.hyperparameters.n_epochs == 2
    assert (finished.job.trained_tokens or 0) > 1000
    checkpoints = client.fine_tuning.jobs.checkpoints.list(finished.job.id)
    assert len(checkpoints.data) >= 1
    assert {finished.job.fine_tuned_model, MODEL} <= {model.id for model in client.models.list()}
    stages = client.get(f"/fine_tuning/jobs/{finished.job.id}/stages", cast_to=object)
    assert {stage["name"] for stage in stages["data"]} == PROCESSES  # type: ignore[index]


@pytest.mark.slow
def test_a_stranger_reaches_the_same_score_with_boto3_transformers_and_peft_alone(
    service: Running, client: OpenAI, finished: Finished
) -> None:
    script = Path(__file__).with_name("stranger.py")
    argv = [
        sys.executable,
        str(script),
        service.s3_endpoint,
        service.s3_access_key,
        service.s3_secret_key,
        finished.job.id,
        str(Settings().cache),
    ]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert abs(float(shown.split()[-1]) - ask(client, finished.job.fine_tuned_model or "")) <= 0.1
