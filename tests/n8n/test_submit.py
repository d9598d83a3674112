"""Workflow 1: a job is asked for once, its callback is believed only if it is LlamaFlow's, and every end is answered."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.models import Job
from tests.app.worker.services import ROWS, SECRET, until
from tests.n8n.conftest import Place, workflow_id

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(1800)]

SUBMIT, FORM = workflow_id("1-submit-and-wait"), workflow_id("1-submit-by-form")
TRAIN = "s3://llamaflow-data/train.jsonl"
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def signed(body: bytes, at: float) -> dict[str, str]:
    """Headers as LlamaFlow's, with its secret."""
    moment = str(int(at))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    mac = hmac.new(key, f"evt_forged.{moment}.".encode() + body, hashlib.sha256).digest()
    said = {"webhook-id": "evt_forged", "webhook-timestamp": moment, "content-type": "application/json"}
    return said | {"webhook-signature": "v1," + base64.b64encode(mac).decode()}


async def forge(place: Place, number: int, url: str, body: bytes, headers: dict[str, str]) -> None:
    """Post to a waiting execution, and wait until it waits again; before it waits it answers 409."""

    async def taken() -> bool:
        return (await http.post(url, content=body, headers=headers)).status_code == 200

    async def waits_again() -> bool:
        newest = (await asyncio.to_thread(place.n8n.executions, SUBMIT))[-1]
        return newest.status == "waiting" and len(newest.runs.get("Third forgery?", [])) == number

    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        await until(taken, 120)
    await until(waits_again, 120)


async def test_forged_callbacks_change_nothing_and_the_true_one_ends_it(
    place: Place, stub_tasks: Callable[..., None]
) -> None:
    stub_tasks(seconds="30")
    asked = asyncio.create_task(place.call("llamaflow-submit", training_file=TRAIN, n_epochs="2"))
    job = await place.job()
    url = job.callback_url or ""
    assert job.spec["hyperparameters"]["n_epochs"] == 2
    body = json.dumps({"type": "fine_tuning.job.failed", "data": {"id": job.id, "error": {"message": "no"}}}).encode()
    other = body.replace(job.id.encode(), b"ftjob-another")
    plain, now = {"content-type": "application/json"}, time.time()
    elsewhere = url.partition("?")[0] + "?token=" + "0" * 32
    forgeries: list[tuple[str, bytes, dict[str, str]]] = [
        (url, body, plain),
        (url, body, signed(body, now) | {"webhook-signature": "v1,bm9uc2Vuc2U="}),
        (url, b"", {}),
        (url, body, signed(body, now - 3600)),
        (url, other, signed(other, now)),
        (elsewhere, body, signed(body, now)),
    ]
    for number, (where, content, headers) in enumerate(forgeries, 1):
        await forge(place, number, where, content, headers)
    answer = await asked
    row = await place.job()
    assert (answer.status_code, answer.json()["ok"], answer.json()["job"]) == (200, True, job.id), answer.text
    assert answer.json()["model"] == row.fine_tuned_model
    assert row.status == "succeeded"
    done = await place.execution(SUBMIT)
    assert done.status == "success"
    counted = {name: len(done.runs[name]) for name in ("Genuine?", "Third forgery?", "Get job", "Create job")}
    assert counted == {"Genuine?": 7, "Third forgery?": 6, "Get job": 2, "Create job": 1}


async def test_an_uploaded_dataset_is_trained_on(place: Place) -> None:
    answer = await place.site.post(
        "/webhook/llamaflow-submit", files={"file": ("mine.jsonl", CONTENT)}, data={"suffix": "mine", "n_epochs": "3"}
    )
    job = await place.job()
    assert (answer.status_code, answer.json()["ok"]) == (200, True), answer.text
    assert (job.training_file[:5], job.suffix, job.spec["hyperparameters"]["n_epochs"]) == ("file-", "mine", 3)
    assert (await place.execution(SUBMIT)).status == "success"


async def test_a_job_that_fails_is_answered_with_the_reason(place: Place) -> None:
    await asyncio.to_thread(place.world.put, "few.jsonl", b"".join(CONTENT.splitlines(keepends=True)[:3]))
    answer = await place.call("llamaflow-submit", training_file="s3://llamaflow-data/few.jsonl")
    error = (await place.job()).error
    assert error is not None
    assert answer.status_code == 502
    said = answer.json()
    assert (said["ok"], said["code"], said["message"]) == (False, "invalid_n_examples", error["message"])
    assert (await place.execution(SUBMIT)).status == "success"


async def test_a_refused_job_is_answered_with_the_services_own_sentence(place: Place) -> None:
    answer = await place.call("llamaflow-submit", training_file="train.jsonl", n_epochs="many")
    wanted = await place.ask(
        "POST",
        "/v1/fine_tuning/jobs",
        json={
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct", "training_file": "train.jsonl", "suffix": "n8n",
            "hyperparameters": {"n_epochs": "many"},
        },
    )  # fmt: skip
    assert (answer.status_code, wanted.status_code) == (400, 400)
    assert answer.json()["message"] == wanted.json()["error"]["message"]
    assert answer.json()["code"] == wanted.json()["error"]["code"]
    assert await place.world.rows(Job) == []
    assert (await place.execution(SUBMIT)).status == "success"


async def test_a_cancelled_job_is_answered_as_such(place: Place, stub_tasks: Callable[..., None]) -> None:
    stub_tasks(seconds="60")
    asked = asyncio.create_task(place.call("llamaflow-submit", training_file=TRAIN))
    await place.world.cancel((await place.job()).id)
    answer = await asked
    assert (answer.status_code, answer.json()["code"]) == (409, "cancelled")


async def test_a_form_with_a_file_starts_a_training(place: Place) -> None:
    form: dict[str, Any] = {"field-0": "", "field-2": "by-form", "field-3": "2"}
    answer = await place.site.post("/form/llamaflow-train", data=form, files={"field-1": ("mine.jsonl", CONTENT)})
    assert answer.status_code == 200, answer.text
    job = await place.job()
    done = await place.execution(FORM)
    assert done.status == "success", done
    ((said,),) = done.runs["Succeeded"]
    model = (await place.job()).fine_tuned_model
    assert said == {"ok": True, "message": f"The model is ready: {model}"}
    assert (job.suffix, job.spec["hyperparameters"]["n_epochs"]) == ("by-form", 2)
