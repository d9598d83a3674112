"""The Python client, unmodified, lives a whole life with the service; no body it gets lacks a key of its types."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import OpenAI

from tests.conformance import life
from tests.conformance.bodies import WHOLE, missing, objects
from tests.conformance.conftest import Place
from tests.conformance.proxy import LossyProxy

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

NOT_HERE = {"model.shutdown_date"}
"""Keys that this service has no meaning for; the client's types allow that they are left out."""


def live(place: Place, seen: list[tuple[str, Any]]) -> None:
    """From the first file to the last delete."""
    with life.connect(f"{place.url}/v1", place.key, seen) as client:
        file = life.files(client)
        job = life.jobs(client, file, place.receiver.url)
        model, checkpoint = life.ended(client, job)
        for name in (model, checkpoint, life.MODEL):
            life.asked(client, name)
        told = place.receiver.events.get(timeout=30)
        assert (told.type, told.data.id) == ("fine_tuning.job.succeeded", job)
        life.webhooks(client, place.receiver.url)
        life.models(client, model)
        assert client.files.delete(file).deleted


async def test_a_life_by_the_python_client(place: Place) -> None:
    seen: list[tuple[str, Any]] = []
    await asyncio.to_thread(live, place, seen)
    await life.at_once(f"{place.url}/v1", place.key)
    lacking = {(asked, key) for asked, body in seen for each in objects(body) for key in missing(each)}
    assert {pair for pair in lacking if pair[1] not in NOT_HERE} == set()
    assert set(WHOLE) <= {each["object"] for _, body in seen for each in objects(body)}
    raw = [body["llamaflow"] for body in place.engine.asked if body["llamaflow"].get("raw")]
    assert len(raw) == 4


async def test_a_client_whose_first_answer_is_lost_makes_one_job(place: Place) -> None:
    proxy = LossyProxy(place.url)
    try:
        with OpenAI(base_url=f"{proxy.url}/v1", api_key=place.key) as client:
            file = await asyncio.to_thread(client.files.create, file=("a.jsonl", life.ROWS), purpose="fine-tune")
            job = await asyncio.to_thread(client.fine_tuning.jobs.create, model=life.MODEL, training_file=file.id)
    finally:
        proxy.close()
    assert proxy.lost == 1
    assert proxy.passed.count("POST /v1/fine_tuning/jobs") == 2
    with OpenAI(base_url=f"{place.url}/v1", api_key=place.key) as direct:
        page = await asyncio.to_thread(direct.fine_tuning.jobs.list)
        assert [each.id for each in page.data] == [job.id]
        await asyncio.to_thread(direct.fine_tuning.jobs.cancel, job.id)
