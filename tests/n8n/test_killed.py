"""n8n or the service is killed while a workflow waits: it still ends right."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from app.embedded import part
from tests.app.worker.services import environment, until
from tests.n8n.conftest import Place, workflow_id

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(1800)]

SUBMIT = workflow_id("1-submit-and-wait")
TRAIN = "s3://llamaflow-data/train.jsonl"


async def waits(place: Place) -> bool:
    """Whether the newest execution waits for its callback."""
    return (await asyncio.to_thread(place.n8n.executions, SUBMIT))[-1].status == "waiting"


async def test_an_execution_survives_its_n8n(place: Place, stub_tasks: Callable[..., None]) -> None:
    stub_tasks(seconds="60")
    asked = asyncio.create_task(place.call("llamaflow-submit", training_file=TRAIN))
    await place.job()
    await until(lambda: waits(place), 120)
    place.n8n.kill()
    with pytest.raises(httpx.HTTPError):
        await asked
    await asyncio.to_thread(place.n8n.start)
    done = await place.execution(SUBMIT)
    job = await place.job()
    assert (done.status, job.status) == ("success", "succeeded")
    assert done.runs["Told"][0][0]["job"]["fine_tuned_model"] == job.fine_tuned_model
    assert list(done.runs)[-1] == "Succeeded"


@contextmanager
def service(place: Place) -> Iterator[None]:
    """API and worker as processes of their own, killed at the end of the block."""
    env = environment(place.world.settings)
    api = subprocess.Popen([part.CLI, "serve", "--port", str(place.site.port)], env=env, stdout=sys.stderr)
    worker = place.world.worker_process()
    try:
        yield
    finally:
        for process in (api, worker):
            process.kill()
            process.wait()


async def test_a_workflow_survives_its_service(at_rest: Place, stub_tasks: Callable[..., None]) -> None:
    stub_tasks(seconds="20")
    asked = asyncio.create_task(at_rest.call("llamaflow-submit", training_file=TRAIN))
    with service(at_rest):
        job = await at_rest.job()

        async def runs() -> bool:
            return (await at_rest.world.get(job.id)).status == "running"

        await until(runs, 300)
    with service(at_rest):
        answer = await asked
    job = await at_rest.job()
    assert (answer.status_code, answer.json()) == (
        200, {"ok": True, "job": job.id, "model": job.fine_tuned_model, "output": (job.output or {})["uri"]},
    )  # fmt: skip
    assert len(await at_rest.world.rows(type(job))) == 1
    assert (await at_rest.execution(SUBMIT)).status == "success"
