"""A life by the synchronous client, and one by the asynchronous one. Each returns what it saw, in order."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": f"A{n}"}]}).encode()
    + b"\n"
    for n in range(12)
)
ASKED: Any = [{"role": "user", "content": "one two three"}]
SUPERVISED: Any = {
    "type": "supervised",
    "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}},
}
SECONDS = 600


def files(client: OpenAI) -> str:
    """Upload, upload in parts, wait, read back, list page by page; the id of a dataset."""
    whole = client.files.create(file=("train.jsonl", ROWS), purpose="fine-tune")
    assert client.files.wait_for_processing(whole.id, poll_interval=0.2).status == "processed"
    assert client.files.retrieve(whole.id) == whole
    assert client.files.content(whole.id).read() == ROWS
    parts = client.uploads.upload_file_chunked(
        file=ROWS, filename="parts.jsonl", bytes=len(ROWS), mime_type="application/jsonl", purpose="fine-tune", part_size=300
    )  # fmt: skip
    assert parts.status == "completed"
    assert parts.file is not None
    assert client.files.content(parts.file.id).read() == ROWS
    client.files.create(file=io.BytesIO(ROWS), purpose="fine-tune")
    listed = [file.id for file in client.files.list(limit=1)]
    assert len(listed) == len(set(listed)) == 3
    assert client.files.delete(parts.file.id).deleted
    return whole.id


def jobs(client: OpenAI, file: str, callback: str) -> str:
    """Create, list page by page, pause, resume, cancel; the id of a job that goes on to its end."""
    loose = client.with_options(max_retries=0)
    loose._strict_response_validation = False  # `paused` is the one status its types do not have
    first = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file, suffix="kpi", seed=7, metadata={"team": "a"}, method=SUPERVISED,
        extra_body={"callback_url": callback},
    )  # fmt: skip
    assert (first.status, first.seed, first.metadata) == ("validating_files", 7, {"team": "a"})
    assert client.fine_tuning.jobs.retrieve(first.id).id == first.id
    others = [client.fine_tuning.jobs.create(model=MODEL, training_file=file, method=SUPERVISED).id for _ in range(2)]
    loose.fine_tuning.jobs.pause(others[0])
    until(loose, others[0], "paused")
    assert loose.fine_tuning.jobs.resume(others[0]).status in ("validating_files", "queued")
    for other in others:
        assert loose.fine_tuning.jobs.cancel(other).id == other
    listed = [job.id for job in loose.fine_tuning.jobs.list(limit=1)]
    assert listed == [*reversed(others), first.id]
    assert [job.id for job in loose.fine_tuning.jobs.list(metadata={"team": "a"})] == [first.id]
    return first.id


def until(client: OpenAI, job: str, *statuses: str) -> Any:
    """The job, once it has one of these statuses."""
    deadline = time.monotonic() + SECONDS
    while (found := client.fine_tuning.jobs.retrieve(job)).status not in statuses:
        assert time.monotonic() < deadline, f"{job} is still {found.status}"
        time.sleep(0.5)
    return found


def ended(client: OpenAI, job: str) -> tuple[str, str]:
    """Wait; events and checkpoints page by page; its model and the newest checkpoint's."""
    found = until(client, job, "succeeded", "failed", "cancelled")
    assert (found.status, found.error) == ("succeeded", None)
    assert found.fine_tuned_model is not None
    assert "auto" not in found.hyperparameters.to_dict().values()
    events = list(client.fine_tuning.jobs.list_events(job, limit=3))
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message == f"Created fine-tuning job: {job}"
    metrics: Any = [event.data for event in events if event.type == "metrics"]
    assert {"step", "train_loss"} <= set(metrics[0])
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job, limit=1))
    assert [point.step_number for point in checkpoints] == [10, 5]
    table = client.files.content(found.result_files[0]).text
    assert table.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    return found.fine_tuned_model, checkpoints[0].fine_tuned_model_checkpoint


def asked(client: OpenAI, model: str) -> None:
    """Chat, completions and responses with a model, whole and streamed."""
    chat = client.chat.completions.create(model=model, messages=ASKED)
    assert chat.choices[0].message.content == "one two three"
    stream = client.chat.completions.create(model=model, messages=ASKED, stream=True)
    assert [chunk.choices[0].delta.content for chunk in stream][1:-1] == ["one", "two", "three"]
    with client.chat.completions.stream(model=model, messages=ASKED) as helper:
        assert helper.get_final_completion().choices[0].message.content == "onetwothree"
    assert client.completions.create(model=model, prompt="one two").choices[0].text == "one two"
    response = client.responses.create(model=model, input="one two", instructions="Echo.")
    assert response.output_text == "one two"
    with client.responses.stream(model=model, input="and on", previous_response_id=response.id) as following:
        final = following.get_final_response()
    assert (final.output_text, final.previous_response_id) == ("andon", response.id)
    assert client.responses.retrieve(response.id).output_text == "one two"
    assert [item.type for item in client.responses.input_items.list(response.id)] == ["message"]
    client.responses.delete(response.id)


def models(client: OpenAI, model: str) -> None:
    """List, get by an id with slashes and colons, delete; raw and streamed answers; an error."""
    assert {MODEL, model} <= {each.id for each in client.models.list()}
    assert client.models.retrieve(model).id == model
    raw = client.models.with_raw_response.retrieve(model)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().id == model
    with client.models.with_streaming_response.list() as streamed:
        assert b'"list"' in b"".join(streamed.iter_bytes())
    assert client.models.delete(model, extra_query={"force": "true"}).deleted
    with pytest.raises(NotFoundError) as refused:
        client.models.retrieve(model)
    assert (refused.value.code, refused.value.type) == ("model_not_found", "not_found_error")
    assert refused.value.request_id is not None


def webhooks(client: OpenAI, url: str) -> None:
    """Make an endpoint, change it, rotate its secret, list and delete."""
    made = client.webhooks.create(name="n8n", url=url, event_types=["fine_tuning.job.succeeded"])
    assert made.signing_secret.startswith("whsec_")
    assert client.webhooks.update(made.id, name="other").name == "other"
    assert client.webhooks.rotate_secret(made.id).signing_secret != made.signing_secret
    assert made.id in [each.id for each in client.webhooks.list()]
    assert client.webhooks.delete(made.id).deleted


async def at_once(url: str, key: str) -> None:
    """The same by the asynchronous client, without the waiting."""
    async with AsyncOpenAI(base_url=url, api_key=key, _strict_response_validation=True) as client:
        file = await client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
        job = await client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, method=SUPERVISED)
        await client.fine_tuning.jobs.cancel(job.id)
        assert [event.id async for event in client.fine_tuning.jobs.list_events(job.id, limit=1)]
        assert job.id in [each.id async for each in client.fine_tuning.jobs.list(limit=1)]
        stream = await client.chat.completions.create(model=MODEL, messages=ASKED, stream=True)
        assert [chunk.choices[0].delta.content async for chunk in stream][1:-1] == ["one", "two", "three"]
        async with client.responses.stream(model=MODEL, input="one") as following:
            assert (await following.get_final_response()).output_text == "one"
        assert (await client.completions.create(model=MODEL, prompt="one")).choices[0].text == "one"
        raw = await client.fine_tuning.jobs.with_raw_response.retrieve(job.id)
        assert raw.parse().id == job.id
        assert (await client.files.delete(file.id)).deleted


def connect(url: str, key: str, seen: list[tuple[str, Any]]) -> OpenAI:
    """The client, unmodified and strict; every JSON body that comes is put into `seen` with its request."""

    def keep(response: Any) -> None:
        if response.headers.get("content-type", "").startswith("application/json"):
            seen.append((f"{response.request.method} {response.request.url.path}", json.loads(response.read())))

    http = openai.DefaultHttpxClient(event_hooks={"response": [keep]})
    return OpenAI(base_url=url, api_key=key, http_client=http, _strict_response_validation=True)
