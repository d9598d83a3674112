"""Workflows 2: what comes from a database, an API and tables is cleaned, written as JSONL byte by byte, and trained on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.files.storage import connect
from app.models import Job
from tests.app.worker.services import BUCKET
from tests.n8n.conftest import Place, workflow_id

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(1800)]

CODE, WITHOUT = workflow_id("2-collect-and-prepare"), workflow_id("2-collect-without-code")
TABLE = 'question,answer\nwhat is  2+2?,Five\n"Quoted ""one""","First line\nsecond"\n'


def lines(*pairs: tuple[str, str]) -> bytes:
    """What a training file with these conversations holds."""
    made = ""
    for question, answer in pairs:
        turns: list[Any] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made += json.dumps({"messages": turns}, ensure_ascii=False, separators=(",", ":")) + "\n"
    return made.encode()


PLAIN = [(f"Question {n}", f"Answer {n}") for n in range(8)]
FROM_ROWS = [("What is  2+2?", '4 — "four" ✓'), ("Where is my parcel?", "On its way.\nIt comes tomorrow."), *PLAIN]
QUOTED = ('Quoted "one"', "First line\nsecond")


async def test_rows_from_three_sources_become_a_dataset_on_s3(place: Place) -> None:
    place.site.neighbours.fill(more=8)
    place.site.neighbours.answers[:] = [
        {"question": " QUESTION 3 ", "answer": "Said before"},
        {"question": "New", "answer": "One "},
    ]
    await asyncio.to_thread(place.world.put, "sources/answers.csv", TABLE.encode())
    answer = await place.call("llamaflow-collect")
    job = await place.job()
    assert (answer.status_code, answer.json()) == (
        202, {"ok": True, "job": job.id, "training_file": job.training_file, "examples": 12},
    )  # fmt: skip
    key = job.training_file.removeprefix(f"s3://{BUCKET}/")
    assert await asyncio.to_thread(place.world.content, key) == lines(*FROM_ROWS, ("New", "One"), QUOTED)
    assert (await place.execution(CODE)).status == "success"


async def test_without_a_code_node_the_same_is_uploaded(place: Place) -> None:
    place.site.neighbours.fill(more=8)
    place.site.neighbours.table.write_text(TABLE)
    answer = await place.call("llamaflow-collect-without-code")
    job = await place.job()
    assert (answer.status_code, answer.json()["examples"]) == (202, 11), answer.text
    assert job.training_file.startswith("file-")
    said = await place.ask("GET", f"/v1/files/{job.training_file}/content")
    assert said.content == lines(*FROM_ROWS, QUOTED)
    assert (await place.execution(WITHOUT)).status == "success"


async def test_without_any_row_the_answer_says_so(place: Place) -> None:
    place.site.neighbours.fill()
    place.site.neighbours.table.write_text("question,answer\n")
    with_rows = await place.call("llamaflow-collect-without-code")
    assert with_rows.json()["examples"] == 2
    place.site.neighbours.clear()
    answer = await place.call("llamaflow-collect-without-code")
    assert (answer.status_code, answer.json()["code"]) == (422, "nothing_found"), answer.text


async def test_a_source_that_fails_is_answered_and_alerted(place: Place) -> None:
    place.site.neighbours.fill()
    store = connect(place.world.settings)
    await asyncio.to_thread(store.delete_object, Bucket=BUCKET, Key="sources/answers.csv")
    answer = await place.call("llamaflow-collect")
    assert (answer.status_code, answer.json()["code"]) == (502, "source_failed"), answer.text
    assert (await place.execution(CODE)).status == "error"
    assert await place.world.rows(Job) == []
    (alert,) = await place.alerts()
    assert alert.startswith("LlamaFlow 2: collect and prepare failed at Tell the error workflow: ")
