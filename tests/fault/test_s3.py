"""S3 that refuses, drops, cuts connections, answers errors, has no space, or changes an object: waited for, or said clearly.

The faults are made by a proxy before the real server, for the service and the pipeline alike.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.auth import key_hash
from app.files.storage import connect
from app.housekeeping.sweep import sweep
from app.models import AdapterVersion, ApiKey, File
from finetune import stub
from finetune.steps import FetchStep, ModelSource
from tests.app.conftest import serving
from tests.app.worker.services import BUCKET, ROWS, World, until
from tests.fault.audit import audit
from tests.fault.s3_proxy import (
    Exchange,
    Fault,
    Proxy,
    answering,
    cut_in_the_middle,
    good,
    of,
    proxied,
    refusing,
    slow,
    times,
)
from tests.fault.scene import Behave

pytestmark = pytest.mark.fault

FAULTS: dict[str, Fault] = {
    "refusing": refusing,
    "slow": slow,
    "cut": cut_in_the_middle,
    "503": answering(503, "SlowDown"),
    "500": answering(500, "InternalError"),
}
NO_SPACE = answering(507, "InsufficientStorage")


@pytest.fixture
def proxy(stored: World) -> Iterator[Proxy]:
    """Before the S3 server, for everything but the test itself."""
    with proxied(str(stored.settings.s3_endpoint)) as made:
        yield made


def below(place: str, fault: Fault) -> Fault:
    """`fault` for requests about one place only."""

    def chosen(exchange: Exchange) -> None:
        (fault if place in exchange.path else good)(exchange)

    chosen.__name__ = getattr(fault, "__name__", "fault")
    return chosen


def through(stored: World, proxy: Proxy) -> dict[str, Any]:
    """What a worker must be told to reach S3 by the proxy."""
    return {"s3_endpoint": proxy.endpoint}


def results(stored: World, job_id: str) -> list[str]:
    return stored.keys(f"model/{job_id}/")


async def test_a_result_is_whole_although_s3_cuts_connections_while_it_is_uploaded(
    stored: World, stub_tasks: Behave, proxy: Proxy
) -> None:
    stub_tasks(seconds="0")
    proxy.fault = below("/model/", times(6, cut_in_the_middle))
    job_id = await stored.job(await stored.project())
    async with stored.working(**through(stored, proxy)):
        await audit(stored, job_id)
    hurt = [path for method, path, fault in proxy.seen if "/model/" in path and method in ("PUT", "GET")]
    assert len(hurt) > len(await asyncio.to_thread(results, stored, job_id)), "nothing was hurt"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["train.jsonl", "/model/"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_job_waits_for_an_s3_that_comes_back(
    stored: World, stub_tasks: Behave, proxy: Proxy, name: str, place: str
) -> None:
    stub_tasks(seconds="0")
    proxy.fault = below(place, times(8, FAULTS[name]))
    job_id = await stored.job(await stored.project())
    async with stored.working(**through(stored, proxy)):
        await audit(stored, job_id, seconds=120)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [of("PUT", NO_SPACE), below("manifest.json", of("PUT", refusing))])
async def test_a_result_that_cannot_be_stored_fails_the_job_and_is_never_half_a_result(
    stored: World, stub_tasks: Behave, proxy: Proxy, fault: Fault
) -> None:
    stub_tasks(seconds="0")
    proxy.fault = below("/model/", fault)
    job_id = await stored.job(await stored.project())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PATIENCE, "1")
        async with stored.working(**through(stored, proxy)):
            job = (await audit(stored, job_id, seconds=240, ends=("failed",)))[job_id]
    assert job.error is not None
    assert (job.error["code"], "S3 did not answer" in job.error["message"]) == ("s3_unavailable", True)
    assert not any(key.endswith("manifest.json") for key in await asyncio.to_thread(results, stored, job_id))
    assert await stored.rows(AdapterVersion) == []
    await sweep(stored.settings.model_copy(update={"keep_failed": 0.0}), stored.database)
    assert await asyncio.to_thread(results, stored, job_id) == [], "the half went with the job's folder"


PATIENCE = "LLAMAFLOW_UPLOAD_PATIENCE"


@pytest.mark.slow
async def test_a_dataset_that_changed_after_it_was_checked_is_not_trained_on(stored: World, tmp_path: Path) -> None:
    base = ModelSource(id="tiny", kind="path", location=str(tmp_path / "made" / "base"))
    (tmp_path / "made").mkdir()
    stub.WORK["fetch"](FetchStep(model=base), {}, tmp_path / "made")
    job_id = await stored.job(await stored.project())
    async with stored.database.transaction() as db:
        await db.execute(text("update jobs set base = :base"), {"base": base.model_dump_json()})
    async with stored.working(worker_slots=0):
        await until(partial(has_status, stored, job_id, "queued"))
    changed = "".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]).encode()
    await asyncio.to_thread(stored.put, "train.jsonl", changed)
    async with stored.working(stub_run=False):
        job = await until(lambda: stored.is_over(job_id), 240)
    assert (job.status, job.error["code"], job.error["param"]) == ("failed", "object_changed", "training_file")
    assert "changed after the job was checked" in job.error["message"]
    assert "Submit the job again" in job.error["message"]


async def has_status(world: World, job_id: str, status: str) -> bool:
    return (await world.get(job_id)).status == status


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name != "slow"])
async def test_while_s3_is_in_trouble_requests_are_answered_soon_and_leave_nothing(
    stored: World, proxy: Proxy, name: str
) -> None:
    project = await stored.project()
    async with stored.database.transaction() as db:
        db.add(ApiKey(id="key", project_id=project, hash=key_hash("lf-fault"), scopes=["write"]))
    before = await asyncio.to_thread(stored.keys, "files/")
    settings = stored.settings.model_copy(update=through(stored, proxy))
    with serving(settings) as url:
        async with httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer lf-fault"}, timeout=60) as http:
            proxy.fault = FAULTS[name]
            for ask in asks(http):
                began = time.monotonic()
                answer = await ask()
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "s3_unavailable"), answer.text
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert time.monotonic() - began < 30
            proxy.fault = good
            assert [(await ask()).status_code for ask in asks(http)] == [201, 200]
    (row,) = await stored.rows(File)
    assert sorted(set(await asyncio.to_thread(stored.keys, "files/")) - set(before)) == [f"files/{project}/{row.id}"]
    await sweep(
        stored.settings.model_copy(update={"keep_orphans": -60.0}), stored.database
    )  # begun, and the answer cut
    assert connect(stored.settings).list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def asks(http: httpx.AsyncClient) -> list[Callable[[], Awaitable[httpx.Response]]]:
    """A job, and an upload in parts."""
    job = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "training_file": f"s3://{BUCKET}/train.jsonl"}
    large = {"file": ("x.jsonl", b"x" * (9 << 20))}
    return [
        lambda: http.post("/v1/fine_tuning/jobs", json=job),
        lambda: http.post("/v1/files", data={"purpose": "fine-tune"}, files=large),
    ]
