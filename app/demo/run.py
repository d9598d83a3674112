"""`llamaflow demo`: starts the real parts, then is nothing but a user of the public API.

Dataset on S3 → POST with the official client → events → signed callback → answers of base and tuned model. Exit 0 only if
the tuned model is better on questions it never saw.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob, SupervisedHyperparametersParam
from rich.markup import escape

from app.demo import dataset
from app.demo.receiver import Receiver
from app.demo.show import Show, Stage, console, side_by_side
from app.embedded.background import Running, StartError, start
from app.settings import Settings

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUCKET = "llamaflow-data"
HYPERPARAMETERS: SupervisedHyperparametersParam = {"n_epochs": 3, "batch_size": 8}
LEARNING_RATE = 2e-3
PAGE = 100


class DemoFailed(Exception):
    """A step did not do what it should; says what, why, and where to look."""


def main(settings: Settings) -> int:
    """Run the demonstration; 0 only if the tuned model answered better."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    show = Show()
    receiver = Receiver()
    try:
        with _service(show, settings, receiver) as service:
            return _demonstrate(show, service, receiver)
    except KeyboardInterrupt:
        console.print("[yellow]Stopped. Nothing is left running.[/]")
        return 130
    except (DemoFailed, StartError) as failure:
        console.print(f"[red]Failed:[/] {escape(str(failure))}")
        return 1
    finally:
        receiver.close()


@contextmanager
def _service(show: Show, settings: Settings, receiver: Receiver) -> Iterator[Running]:
    with show.step("Start the service: Postgres, S3 server, API, worker, inference engine") as stage:
        running = start(
            settings, {"LLAMAFLOW_PORT": "0", "LLAMAFLOW_WEBHOOK_ALLOW": receiver.address}, report=stage.note
        )
        stage.result = f"API at {running.url}, S3 at {running.s3_endpoint}"
    receiver.secret = running.webhook_secret
    try:
        yield running
    finally:
        running.stop()


def _demonstrate(show: Show, service: Running, receiver: Receiver) -> int:
    client = OpenAI(base_url=service.url + "/v1", api_key=service.api_key, max_retries=5)
    with show.step("Upload the dataset to S3") as stage:
        training, validation = _upload(service)
        stage.result = f"{len(dataset.training_rows())} examples → {training}"
    with show.step("POST /v1/fine_tuning/jobs with the official openai client") as stage:
        job = _create(client, training, validation, receiver.url)
        stage.result = f"{job.id} ({job.status})"
    try:
        with show.step("Train: Nextflow runs the pipeline, events are followed as they come") as stage:
            job = _follow(client, job.id, stage)
        with show.step("Receive the signed callback") as stage:
            stage.result = _callback(receiver, job.id)
    except KeyboardInterrupt:
        client.fine_tuning.jobs.cancel(job.id)
        raise
    if job.fine_tuned_model is None:
        raise DemoFailed(f"job {job.id} succeeded without a model")
    questions = dataset.exam()
    with show.step(f"Ask the base model {len(questions)} questions that stand in no training row") as stage:
        base = _ask(client, MODEL, questions, stage)
        before = _score(questions, base)
        stage.result = f"{before:.0%} right"
    with show.step("Ask the fine-tuned model the same questions") as stage:
        tuned = _ask(client, job.fine_tuned_model, questions, stage)
        after = _score(questions, tuned)
        stage.result = f"{after:.0%} right"
    side_by_side(questions, base, tuned)
    _close(show, service, job, before, after)
    return 0 if after > before else 1


def _s3(service: Running) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=service.s3_endpoint,
        aws_access_key_id=service.s3_access_key,
        aws_secret_access_key=service.s3_secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


def _upload(service: Running) -> tuple[str, str]:
    for name, rows in (("train", dataset.training_rows()), ("validation", dataset.validation_rows())):
        _s3(service).put_object(Bucket=BUCKET, Key=f"demo/{name}.jsonl", Body=dataset.jsonl(rows))
    return f"s3://{BUCKET}/demo/train.jsonl", f"s3://{BUCKET}/demo/validation.jsonl"


def _model_s3(service: Running, uri: str) -> str:
    """The content of model_s3.txt, read from S3."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return str(_s3(service).get_object(Bucket=bucket, Key=key)["Body"].read().decode().strip())


def _create(client: OpenAI, training: str, validation: str, callback: str) -> FineTuningJob:
    return client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=training,
        validation_file=validation,
        suffix="freight-desk",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}},
        extra_body={"hyperparameters": {"learning_rate": LEARNING_RATE}, "callback_url": callback},
    )


def _follow(client: OpenAI, job_id: str, stage: Stage) -> FineTuningJob:
    seen: set[str] = set()
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        page = client.fine_tuning.jobs.list_events(job_id, limit=PAGE)
        for event in reversed([event for event in page.data if event.id not in seen]):
            seen.add(event.id)
            if event.type != "metrics":
                console.print(
                    f"     [dim]{time.strftime('%H:%M:%S', time.localtime(event.created_at))}[/]  {escape(event.message)}"
                )
        progress: dict[str, Any] = (job.model_extra or {}).get("progress") or {}
        if progress.get("total_steps"):
            eta = progress.get("eta_seconds")
            loss = f", loss {progress['train_loss']:.3f}" if progress.get("train_loss") is not None else ""
            text = f"{progress.get('stage', '')} step {progress['step']}/{progress['total_steps']}{loss}" + (
                f", {eta:.0f} s left" if eta else ""
            )
            stage.move(float(progress["step"]), float(progress["total_steps"]), text)
        elif progress.get("stage"):
            stage.note(str(progress["stage"]))
        if job.status == "succeeded":
            stage.result = f"{job.trained_tokens} trained tokens → {job.fine_tuned_model}"
            return job
        if job.status in ("failed", "cancelled"):
            why = job.error.message if job.error else job.status
            raise DemoFailed(
                f"the job ended {job.status}: {why}\n  Its log: llamaflow jobs logs {job_id}, or .llamaflow/runs/{job_id}/"
            )
        time.sleep(0.5)


def _callback(receiver: Receiver, job_id: str) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            event = receiver.events.get(timeout=1)
        except queue.Empty:
            continue
        if event.data.id == job_id:
            return f"{event.type} ({event.id}), signature verified by openai's webhooks.unwrap"
    raise DemoFailed("no callback came within 60 s; see .llamaflow/logs/worker.log")


def _ask(client: OpenAI, model: str, questions: list[dataset.Question], stage: Stage) -> list[str]:
    answers = []
    for number, question in enumerate(questions, 1):
        pieces = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question.text}],
            max_tokens=24,
            temperature=0,
            stream=True,
        )
        answers.append("".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices))
        stage.move(number, len(questions), f"{number}/{len(questions)}")
    return answers


def _score(questions: list[dataset.Question], answers: list[str]) -> float:
    return sum(question.right(answer) for question, answer in zip(questions, answers, strict=True)) / len(questions)


def _close(show: Show, service: Running, job: FineTuningJob, before: float, after: float) -> None:
    output: dict[str, Any] = (job.model_extra or {}).get("output") or {}
    verdict = "[green]better[/]" if after > before else "[red]not better[/]"
    console.print(
        f"\n[bold]Held-out questions right: base {before:.0%}, fine-tuned {after:.0%}[/] — {verdict}, in {show.total():.0f} s"
    )
    console.print(f"model_s3.txt: {_model_s3(service, output['model_s3'])}")
    console.print(f"model:        {job.fine_tuned_model}")
    key = os.path.relpath(service.state_dir / "api_key")
    question = dataset.exam()[0].text
    console.print(
        "\nThe service stops now; everything it made is kept. To go on:\n"
        "  make up                           # the service on http://127.0.0.1:8000, Swagger UI on http://127.0.0.1:8000/docs\n"
        "  .venv/bin/llamaflow jobs list     # in another terminal, as is:\n"
        f"  curl http://127.0.0.1:8000/v1/chat/completions -H \"Authorization: Bearer $(cat {key})\" -H 'Content-Type: application/json' \\\n"
        f"""    -d '{{"model": "{job.fine_tuned_model}", "messages": [{{"role": "user", "content": "{question}"}}]}}'""",
        markup=False,
    )
    sys.stdout.flush()
