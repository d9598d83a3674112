"""The first claim on a real S3 server: what is pinned, what is refused and how it is said, what is waited for."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from app.worker.claim import Claim
from app.worker.validate import validate
from tests.app.worker.services import ROWS, World, until

pytestmark = pytest.mark.db

GOOD = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


async def checked(world: World, **spec: Any) -> Any:
    """The job after its dataset was checked."""
    job_id = await world.job(await world.project(), **spec)
    await validate(world.database, world.settings, Claim(job_id, 0, None))
    return await world.get(job_id)


async def test_a_good_dataset_is_pinned_by_etag_and_size(stored: World) -> None:
    stored.put("valid.jsonl", GOOD[: GOOD.index(b"\n") + 1])
    job = await checked(stored, validation_file="s3://llamaflow-data/valid.jsonl")
    assert job.status == "queued"
    (pinned,) = job.training_objects
    assert (pinned["uri"], pinned["size"], len(pinned["etag"])) == ("s3://llamaflow-data/train.jsonl", len(GOOD), 32)
    assert [row["uri"] for row in job.validation_objects] == ["s3://llamaflow-data/valid.jsonl"]


async def test_a_prefix_means_every_dataset_file_below_it(stored: World) -> None:
    rows = GOOD.splitlines(keepends=True)
    for key, content in (("dir/a.jsonl", rows[:6]), ("dir/sub/b.jsonl", rows[6:]), ("dir/readme.md", [b"# not one"])):
        stored.put(key, b"".join(content))
    job = await checked(stored, training_file="s3://llamaflow-data/dir/")
    assert [row["uri"].rpartition("/dir/")[2] for row in job.training_objects] == ["a.jsonl", "sub/b.jsonl"]


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"", "invalid_file_format", "is empty"),
        (GOOD + b'{"messages": []}\n{"oops"\n', "invalid_file_format", "line 13"),
        (b"".join(GOOD.splitlines(keepends=True)[:9]), "invalid_n_examples", "9 examples"),
        (gzip.compress(GOOD)[:-4], "invalid_file_format", "gzip"),
        (b"\xff\xfe" + GOOD, "invalid_file_format", "UTF-16"),
    ],
)
async def test_a_bad_dataset_fails_with_its_sentence(stored: World, content: bytes, code: str, said: str) -> None:
    stored.put("bad.jsonl", content)
    job = await checked(stored, training_file="s3://llamaflow-data/bad.jsonl")
    assert (job.status, job.error["code"], job.error["param"]) == ("failed", code, "training_file")
    assert said in job.error["message"]


async def test_several_lines_are_named_at_once(stored: World) -> None:
    stored.put("bad.jsonl", GOOD + b'nonsense\n{"messages": "x"}\n[1]\n')
    job = await checked(stored, training_file="s3://llamaflow-data/bad.jsonl")
    assert all(f"line {line}" in job.error["message"] for line in (13, 14, 15))


@pytest.mark.parametrize(
    "uri", ["s3://llamaflow-data/none.jsonl", "s3://no-such-bucket/x.jsonl", "s3://llamaflow-data/no/"]
)
async def test_a_dataset_that_is_not_there_fails(stored: World, uri: str) -> None:
    job = await checked(stored, training_file=uri)
    assert (job.status, job.error["code"], job.error["param"]) == ("failed", "file_not_found", "training_file")


async def test_a_deleted_file_fails(stored: World) -> None:
    job = await checked(stored, training_file="file-gone")
    assert (job.status, job.error["code"]) == ("failed", "file_not_found")


async def test_only_so_much_is_read(stored: World) -> None:
    stored.put("long.jsonl", GOOD + b"not read any more\n")
    stored.settings = stored.settings.model_copy(update={"validate_bytes": 300})
    assert (await checked(stored, training_file="s3://llamaflow-data/long.jsonl")).status == "queued"


async def test_while_s3_is_away_the_job_waits(world: World) -> None:
    job_id = await world.job(await world.project())
    task = asyncio.create_task(validate(world.database, world.settings, Claim(job_id, 0, None)))
    done, _ = await asyncio.wait({task}, timeout=2.5)
    assert not done
    assert (await world.get(job_id)).status == "validating_files"
    await world.cancel(job_id)
    await asyncio.wait_for(task, 15)
    assert (await world.get(job_id)).status == "cancelled"


async def test_a_worker_checks_and_queues_by_itself(stored: World) -> None:
    job_id = await stored.job(await stored.project())

    async def queued() -> bool:
        return (await stored.get(job_id)).status == "queued"

    async with stored.working(worker_slots=0):
        await until(queued)
    assert (await stored.get(job_id)).worker_id is None
