"""What a training keeps with the service: the lease, its lines, and its files on S3, below its job's prefix only."""

from __future__ import annotations

import asyncio
import hashlib
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, update

from app.db import Database
from app.models import TrainLease
from app.runs import lines, tokens
from tests.app.conftest import BUCKET, Service
from tests.app.runs.conftest import KEY, OTHER, Task, code, read, write

pytestmark = pytest.mark.db

LINE = '{"event": "step", "step": 1, "text": "häß"}\n'


def entry(path: str, content: bytes = b"x") -> dict[str, object]:
    return {"path": path, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


async def test_one_process_trains_at_a_time(task: Task) -> None:
    assert not task.take(OTHER)
    assert not task.take(OTHER, key="another-key")
    assert task.take()
    assert task.ask("POST", "/lease/release", {}).status_code == 204
    assert task.take(OTHER, key="another-key")
    assert not task.take()


async def test_of_many_that_ask_at_once_one_gets_it(task: Task) -> None:
    task.ask("POST", "/lease/release", {})
    answers = await asyncio.gather(*(asyncio.to_thread(task.take, f"train-{n:010}") for n in range(12)))
    assert sorted(answers) == [False] * 11 + [True]


async def test_who_was_silent_too_long_is_followed_by_another_and_writes_nothing_more(task: Task, db: Database) -> None:
    late = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, 1)
    async with db.transaction() as session:
        await session.execute(update(TrainLease).where(TrainLease.job_id == task.job.id).values(lease_until=late))
    assert task.ask("POST", "/lines", {"start": 0, "text": LINE}).status_code == 200  # nobody else trains yet
    assert task.take(OTHER)
    refused = [
        task.ask("POST", "/lines", {"start": len(LINE.encode()), "text": LINE}),
        task.ask("POST", "/objects", {"method": "put", "objects": [{"sha256": "a" * 64, "size": 1}]}),
        task.ask("PUT", "/mirror", {"mirror": {"train_key": KEY, "files": []}}),
    ]
    assert {code(answer) for answer in refused} == {(409, "lease_lost")}
    assert not task.take()
    task.ask("POST", "/lease/release", {}, holder=OTHER)
    renewal = task.ask("PUT", "/lease", {"train_key": KEY, "renew": True})
    assert renewal.json()["held"] is False  # another one has trained meanwhile
    assert task.take()


async def test_lines_sent_twice_are_there_once_and_gaps_are_refused(task: Task, db: Database) -> None:
    size = len(LINE.encode())
    for start in (0, 0, size, 0):
        assert task.ask("POST", "/lines", {"start": start, "text": LINE}).status_code == 200
    assert code(task.ask("POST", "/lines", {"start": 5 * size, "text": LINE})) == (409, "lines_missing")
    assert task.ask("GET", "/lines").json()["text"] == 2 * LINE
    async with db.transaction() as session:
        assert await lines.read(session, task.job.id, size + 3) == LINE.encode()[3:]


@pytest.mark.parametrize("text", ['{"half": 1}', "no json\n", "[1]\n", '{"a": 1}\n\n', "1\n"])
async def test_only_whole_objects_are_lines(task: Task, text: str) -> None:
    assert code(task.ask("POST", "/lines", {"start": 0, "text": text})) == (400, "invalid_value")


async def test_what_is_asked_of_the_training_comes_with_its_heartbeat(task: Task, db: Database) -> None:
    async with db.transaction() as session:
        await tokens.ask(session, task.run.id, "pause")
    assert task.ask("PUT", "/lease", {"train_key": KEY}).json()["intent"] == "pause"
    async with db.transaction() as session:
        await tokens.ask(session, task.run.id, None)
    assert task.ask("PUT", "/lease", {"train_key": KEY}).json()["intent"] is None


async def test_files_go_below_the_jobs_own_prefix_and_come_back(task: Task, service: Service) -> None:
    content = b"weights" * 1000
    name = hashlib.sha256(content).hexdigest()
    assert task.put(content).status_code == 200
    asked = {"method": "get", "objects": [{"sha256": name, "size": len(content)}]}
    url = task.ask("POST", "/objects", asked).json()["urls"][name]
    assert urlsplit(url).path == f"/{BUCKET}/model/{task.job.id}/train/{name}"
    assert read(url).content == content
    assert write(url, b"other").status_code == 403
    assert read(url.replace(name, "manifest.json")).status_code == 403


async def test_an_address_takes_an_object_of_its_own_size_only(task: Task) -> None:
    name = hashlib.sha256(b"x" * 10).hexdigest()
    answer = task.ask("POST", "/objects", {"method": "put", "objects": [{"sha256": name, "size": 10}]})
    url = answer.json()["urls"][name]
    assert write(url, b"x" * 11, name).status_code == 403
    assert write(url, b"y" * 10).status_code == 403  # signed for the sha256 of something else
    assert write(url, b"x" * 10).status_code == 200


async def test_the_record_is_what_was_written_last_and_what_it_drops_is_removed(task: Task, service: Service) -> None:
    prefix = f"model/{task.job.id}/train/"
    assert task.ask("GET", "/mirror").json() == {"mirror": None}
    for content in (b"old", b"new"):
        task.put(content)
        made = {"train_key": KEY, "files": [entry("checkpoint-5/optimizer.pt", content)]}
        assert task.ask("PUT", "/mirror", {"mirror": made}).status_code == 204
        assert task.ask("GET", "/mirror").json()["mirror"] == made
    keys = [row["Key"] for row in service.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]]
    assert sorted(keys) == sorted([prefix + hashlib.sha256(b"new").hexdigest(), f"{prefix}mirror.json"])


@pytest.mark.parametrize(
    "path",
    [
        "../manifest.json",
        "checkpoint-5/../../x",
        "/etc/passwd",
        "checkpoint-5",
        "adapter/.hidden",
        "mirror.json",
        "a\nb",
    ],
)
async def test_only_names_of_a_training_stand_in_a_record(task: Task, path: str) -> None:
    answer = task.ask("PUT", "/mirror", {"mirror": {"train_key": KEY, "files": [entry(path)]}})
    assert answer.status_code == 400, answer.text


async def test_lists_are_bounded(task: Task) -> None:
    many = [{"sha256": f"{n:064x}", "size": 1} for n in range(513)]
    assert task.ask("POST", "/objects", {"method": "get", "objects": many}).status_code == 400
    huge = [{"sha256": "a" * 64, "size": 6 << 30}]
    assert task.ask("POST", "/objects", {"method": "put", "objects": huge}).status_code == 400
    twice = {"train_key": KEY, "files": [entry("result.json"), entry("result.json")]}
    assert task.ask("PUT", "/mirror", {"mirror": twice}).status_code == 400
