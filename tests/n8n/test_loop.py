"""Workflow 6: enough corrections become a training whose result has to pass the gate, and somebody is told each time."""

from __future__ import annotations

from typing import Any

import pytest

from app.models import ApiKey, Job
from tests.app.worker.services import until
from tests.n8n.conftest import ENOUGH, Place, workflow_id

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(1800)]

LOOP = workflow_id("6-loop")


async def correct(place: Place, number: int) -> None:
    """Ask the adapter, and correct its answers."""
    for at in range(number):
        said = await place.ask("POST", "/v1/responses", json={"model": "support", "input": f"Live question {at}"})
        body: dict[str, Any] = {"completion_id": said.json()["id"], "correction": f"Better answer {at}"}
        given = await place.ask("POST", "/v1/feedback", json=body)
        assert given.status_code == 200, given.text


async def alerts(place: Place, number: int) -> list[str]:
    async def there() -> list[str] | None:
        told = place.site.neighbours.alerts
        return told if len(told) >= number else None

    told: list[str] = await until(there, 300)
    return told


async def test_corrections_are_trained_on_once_there_are_enough(place: Place) -> None:
    async with place.world.database.transaction() as db:
        (await db.get_one(ApiKey, "key_n8n")).keep_completions = 86400
    trained = await place.call("llamaflow-submit", training_file="s3://llamaflow-data/train.jsonl", suffix="support")
    assert trained.status_code == 200, trained.text

    await correct(place, 1)
    begun = await place.call("llamaflow-loop")
    assert begun.status_code == 202, begun.text
    done = await place.execution(LOOP)
    assert (done.status, "Wait for more" in done.runs, "Create job" in done.runs) == ("success", True, False)
    worse = "LlamaFlow: Of support version 1 100 % of {} rated answers were bad."
    assert await alerts(place, 1) == [worse.format(1)]

    await correct(place, ENOUGH)
    await place.call("llamaflow-loop")
    told = await alerts(place, 3)
    second: Job = await place.job(2)
    assert told[1:] == [
        worse.format(ENOUGH + 1),
        f"LlamaFlow: Version 2 of support was not better; the one before goes on answering: {second.id}",
    ]
    assert (second.spec["model"], second.spec["evaluation"]["gate"]["better_than"]) == ("support", "current")
    assert (await place.execution(LOOP)).status == "success"
