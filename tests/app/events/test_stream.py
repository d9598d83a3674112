"""A job's events as a live stream: oldest first, resumed by number, ended by itself; and what ends it otherwise."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from openai import OpenAI, Stream
from openai.types.fine_tuning import FineTuningJobEvent
from sqlalchemy import text

from app.auth import key_hash
from app.db import Database
from app.events import hub
from app.events import service as events
from app.jobs import lifecycle
from app.models import ApiKey
from tests.app.conftest import Service, serving, until
from tests.app.events.sse import Sent, numbers, parsed
from tests.app.jobs.factory import create, move, step

pytestmark = pytest.mark.db


def address(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/events"


async def tell(db: Database, job_id: str, *messages: str, type: str = "message") -> None:
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        for message in messages:
            await events.record(session, job, message, type=type)


@contextmanager
def reading(service: Service, job_id: str, project: str = "alpha", **headers: str) -> Iterator[list[Sent]]:
    """What a stream brings, while it goes on; `None` behind it when the service ended it."""
    came: list[Any] = []
    client = service.http(project, accept="text/event-stream", **headers)
    with client, client.stream("GET", address(job_id)) as response:
        assert response.status_code == 200, response.read()

        def read() -> None:
            try:
                for sent in parsed(response.iter_lines()):
                    came.append(sent)  # noqa: PERF402  as they come
                came.append(None)
            except httpx.HTTPError:
                pass

        thread = threading.Thread(target=read)
        thread.start()
        yield came
        with suppress(OSError):  # or the reader would wait for the next byte
            response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        thread.join(10)


def whole(service: Service, job_id: str, **headers: str) -> list[Sent]:
    """All of a stream that ends by itself."""
    with service.http(**headers) as client, client.stream("GET", address(job_id), params={"stream": True}) as response:
        return list(parsed(response.iter_lines()))


async def test_history_comes_first_and_then_what_happens_until_the_end(
    service: Service, client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    with reading(service, job_id) as came:
        await until(lambda: numbers(came) == [1, 2])
        await move(db, job_id, "queued")
        await until(lambda: len(numbers(came)) == 3)
        await step(db, job_id, "cancelled")
        await until(lambda: came[-1] is None)
    assert came[0].retry == "2000"
    told = [sent for sent in came if sent and sent.id]
    listed = client.fine_tuning.jobs.list_events(job_id).data[::-1]
    assert [sent.body for sent in told] == [event.to_dict(mode="json") for event in listed]
    assert {sent.event for sent in told} == {"message"}
    assert (came[-2].event, came[-2].data, came[-2].id) == ("done", "[DONE]", None)


async def test_a_stream_of_a_job_that_is_over_is_its_history_and_ends(
    service: Service, client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    await move(db, job_id, "failed")
    assert numbers(whole(service, job_id)) == [1, 2, 3]
    assert numbers(whole(service, job_id, **{"last-event-id": "2"})) == [3]
    assert [sent.data for sent in whole(service, job_id, **{"last-event-id": "3"}) if sent.data] == ["[DONE]"]


async def test_it_resumes_behind_an_events_own_id_and_the_header_is_the_newer(
    service: Service, client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    await move(db, job_id, "failed")
    first = client.fine_tuning.jobs.list_events(job_id).data[-1]
    with service.http() as http:
        after = http.get(address(job_id), params={"stream": True, "after": first.id}).text
        both = http.get(
            address(job_id), params={"stream": True, "after": first.id}, headers={"last-event-id": "2"}
        ).text
    assert numbers(parsed(after.splitlines())) == [2, 3]
    assert numbers(parsed(both.splitlines())) == [3]


async def test_a_history_longer_than_what_is_kept_in_memory_comes_whole(
    service: Service, client: OpenAI, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RECENT", 8)
    job_id = create(client)
    await tell(db, job_id, *(f"Step {n}" for n in range(5 * hub.RECENT)))
    with reading(service, job_id) as came:
        await until(lambda: len(numbers(came)) == 5 * hub.RECENT + 2)
        await tell(db, job_id, *(f"More {n}" for n in range(3 * hub.RECENT)))  # in one transaction
        await until(lambda: len(numbers(came)) == 8 * hub.RECENT + 2)
    assert numbers(came) == list(range(1, 8 * hub.RECENT + 3))


async def test_a_stream_of_a_job_whose_events_are_not_kept_any_more_ends(
    service: Service, client: OpenAI, db: Database
) -> None:
    job_id = create(client)
    await move(db, job_id, "failed")
    async with db.transaction() as session:
        await session.execute(text("delete from events where job_id = :job"), {"job": job_id})
    assert [sent.data for sent in whole(service, job_id) if sent.data] == ["[DONE]"]


async def test_the_official_clients_own_stream_reads_it(client: OpenAI, db: Database) -> None:
    job_id = create(client)
    await tell(db, job_id, "Step 1/2: training loss 0.50", type="metrics")
    await move(db, job_id, "failed")
    stream = client.get(
        f"/fine_tuning/jobs/{job_id}/events",
        cast_to=FineTuningJobEvent,
        options={"params": {"stream": True}},
        stream=True,
        stream_cls=Stream[FineTuningJobEvent],
    )
    told = list(stream)
    assert [event.type for event in told] == ["message", "message", "metrics", "message"]
    assert told[::-1] == list(client.fine_tuning.jobs.list_events(job_id))


def test_it_may_not_be_kept_nor_held_back_by_a_proxy(service: Service, client: OpenAI) -> None:
    job_id = create(client)
    with service.http() as http, http.stream("GET", address(job_id), params={"stream": True}) as response:
        kind = response.headers["content-type"].partition(";")[0]
        assert (kind, response.headers["cache-control"]) == ("text/event-stream", "no-store")
        assert response.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("last", ["-1", "4711", "x", "9" * 30, "ftevent-x"])
def test_a_number_that_the_job_does_not_have_is_refused(service: Service, client: OpenAI, last: str) -> None:
    with service.http(**{"last-event-id": last, "accept": "text/event-stream"}) as http:
        answer = http.get(address(create(client)))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "last-event-id")


def test_an_event_of_another_job_is_no_place_to_go_on_from(http: httpx.Client, client: OpenAI) -> None:
    other = client.fine_tuning.jobs.list_events(create(client)).data[0].id
    answer = http.get(address(create(client)), params={"stream": True, "after": other})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "after")


def test_another_projects_stream_is_not_there(service: Service, client: OpenAI) -> None:
    with service.http("beta", accept="text/event-stream") as http:
        assert http.get(address(create(client))).status_code == 404


@pytest.mark.parametrize(
    ("accept", "asked", "kind"),
    [
        ("*/*", None, "application/json"),
        ("application/json", None, "application/json"),
        ("text/event-stream", None, "text/event-stream"),
        ("text/html, Text/Event-Stream;q=0.9", None, "text/event-stream"),
        ("text/event-stream", "false", "application/json"),
        ("*/*", "true", "text/event-stream"),
    ],
)
async def test_who_asks_for_a_stream_gets_one(
    service: Service, client: OpenAI, db: Database, accept: str, asked: str | None, kind: str
) -> None:
    job_id = create(client)
    await move(db, job_id, "failed")
    with service.http(accept=accept) as http:
        answer = http.get(address(job_id), params={"stream": asked} if asked else {})
    assert answer.headers["content-type"].partition(";")[0] == kind


def test_silence_is_broken_by_comments(service: Service, client: OpenAI) -> None:
    settings = service.settings.model_copy(update={"stream_heartbeat": 0.1})
    with serving(settings) as url:
        http = Service(url, settings, service.s3).http()
        with http, http.stream("GET", address(create(client)), params={"stream": True}) as response:
            sent = parsed(response.iter_lines())
            first = [next(sent) for _ in range(10)]
    assert numbers(first) == [1, 2]
    assert [each.comment for each in first[-3:]] == [" still here"] * 3


async def test_a_stream_ends_soon_after_its_key_was_revoked(
    service: Service, client: OpenAI, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "KEYS_SECONDS", 0.2)
    async with db.transaction() as session:
        session.add(ApiKey(id="key_brief", project_id="proj_alpha", hash=key_hash("lf-brief"), scopes=["read"]))
    job_id = create(client)
    with reading(service, job_id, "brief") as came, reading(service, job_id) as others:
        await until(lambda: numbers(came) == [1, 2])
        async with db.transaction() as session:
            await session.execute(text("update api_keys set revoked_at = clock_timestamp() where id = 'key_brief'"))
        await until(lambda: came[-1] is None, 20)
        assert others[-1] is not None
    assert [sent.data for sent in came if sent and sent.data == "[DONE]"] == []


def test_streams_end_at_once_when_the_service_stops(service: Service, client: OpenAI) -> None:
    ended: list[float] = []

    def read(url: str) -> None:
        http = Service(url, service.settings, service.s3).http()
        with http, http.stream("GET", address(job_id), params={"stream": True}) as response:
            for _ in response.iter_lines():
                came.set()
        ended.append(time.monotonic())

    job_id, came = create(client), threading.Event()
    with serving(service.settings) as url:
        thread = threading.Thread(target=read, args=(url,))
        thread.start()
        assert came.wait(10)
        asked = time.monotonic()
    thread.join(10)
    assert ended
    assert ended[0] - asked < 5, "it waited for the end of uvicorn's grace"


def test_more_streams_than_are_allowed_are_refused(service: Service, client: OpenAI) -> None:
    settings = service.settings.model_copy(update={"max_streams": 2, "max_streams_in_all": 3})
    job_id = create(client)
    with serving(settings) as url:
        limited = Service(url, settings, service.s3)
        with reading(limited, job_id) as first, reading(limited, job_id), limited.http() as http:
            refused = http.get(address(job_id), params={"stream": True})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
            assert "LLAMAFLOW_MAX_STREAMS)" in refused.json()["error"]["message"]
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert first is not None
        deadline = time.monotonic() + 10
        while True:  # the places of clients that hung up are free again
            with limited.http() as http, http.stream("GET", address(job_id), params={"stream": True}) as response:
                if response.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)
