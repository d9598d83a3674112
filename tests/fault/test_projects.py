"""Two projects on one service: whatever the one tries, through the API or through a job that is really run, it gets nothing of the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.models import Table
from tests.app.worker.services import World, until
from tests.fault.doors import HUB, JOBS, ROW, doors, make_project
from tests.fault.scene import Behave, Workers

pytestmark = pytest.mark.fault

SECRET_ROW = json.dumps(
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "alphas-secret"}]}
)
MINE = ROW * 12
THEIRS = (SECRET_ROW + "\n").encode() * 12


@pytest_asyncio.fixture
async def both(stored: World) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of two projects, alpha and beta."""
    for name in ("alpha", "beta"):
        await make_project(stored, name, f"lf-{name}-key")
    async with doors(stored, "lf-alpha-key", "lf-beta-key") as clients:
        yield clients


async def upload(http: httpx.AsyncClient, content: bytes) -> dict[str, Any]:
    form = {"files": {"file": ("rows.jsonl", content)}, "data": {"purpose": "fine-tune"}}
    return dict((await http.post("/v1/files", **form)).json())


async def post(http: httpx.AsyncClient, training_file: str, **more: Any) -> httpx.Response:
    return await http.post(JOBS, json={"model": HUB, "training_file": training_file, **more})


async def test_a_folder_that_holds_anothers_results_or_uploads_means_ones_own_rows_alone(
    stored: World, both: list[httpx.AsyncClient]
) -> None:
    alpha, beta = both
    theirs = await upload(alpha, THEIRS)
    job = (await post(alpha, theirs["id"])).json()["id"]
    for key, content in (
        (f"shared/{job}/rows.jsonl", THEIRS),
        ("shared/mine.jsonl", MINE),
        (f"only/{job}/rows.jsonl", THEIRS),
    ):
        await asyncio.to_thread(stored.put, key, content)
    for refused in (
        theirs["uri"], "s3://llamaflow-data/", "s3://llamaflow-data/files/", theirs["uri"].rpartition("/")[0] + "/",
        f"s3://llamaflow-data/shared/{job}/", f"s3://llamaflow-data/shared/{job}/rows.jsonl", "s3://llamaflow-data/only/",
    ):  # fmt: skip
        answer = await post(beta, refused)
        assert (answer.status_code, answer.json()["error"]["code"] in ("path_not_allowed", "file_not_found")) == (
            400,
            True,
        ), refused
    accepted = (await post(beta, "s3://llamaflow-data/shared/")).json()["id"]

    async def checked() -> bool:
        return (await stored.get(accepted)).status != "validating_files"

    async with stored.working(worker_slots=0):
        await until(checked, 60)
    pinned = (await stored.get(accepted)).training_objects or []
    assert [row["uri"] for row in pinned] == ["s3://llamaflow-data/shared/mine.jsonl"]


async def test_a_prefix_taken_away_is_not_read_by_its_registered_files_either(
    stored: World, both: list[httpx.AsyncClient]
) -> None:
    _, beta = both
    await asyncio.to_thread(stored.put, "lent/rows.jsonl", MINE)
    made = await beta.post("/v1/files", json={"s3_uri": "s3://llamaflow-data/lent/rows.jsonl", "purpose": "fine-tune"})
    assert (await post(beta, made.json()["id"])).status_code == 201
    async with stored.database.transaction() as db:
        projects = Table.metadata.tables["projects"]
        await db.execute(
            projects.update().where(projects.c.name == "beta").values(path_allow=["s3://llamaflow-data/beta/"])
        )
    refused = await post(beta, made.json()["id"], output={"path": "s3://llamaflow-data/beta/"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "path_not_allowed")
    own = await upload(beta, MINE)
    assert (await post(beta, own["id"])).json()["error"]["param"] == "output.path"
    assert (await post(beta, own["id"], output={"path": "s3://llamaflow-data/beta/"})).status_code == 201


@pytest.mark.slow
async def test_what_a_real_run_of_one_leaves_is_not_there_for_the_other(
    stored: World, both: list[httpx.AsyncClient], stub_tasks: Behave, workers: Workers
) -> None:
    alpha, beta = both
    stub_tasks(seconds="0")
    theirs = await upload(alpha, THEIRS)
    job_id = (await post(alpha, theirs["id"], suffix="secret-desk", metadata={"k": "alphas-secret"})).json()["id"]
    workers()
    job = await until(lambda: stored.is_over(job_id), 240)
    assert job.status == "succeeded"
    shown = (await alpha.get(f"{JOBS}/{job_id}")).json()
    prefix, model = shown["output"]["uri"], shown["fine_tuned_model"]
    for address in (
        prefix,
        f"{prefix}metrics.csv",
        f"{prefix}adapter/",
        f"{prefix}checkpoints/step-5/adapter_model.safetensors",
    ):
        assert (await post(beta, address)).json()["error"]["code"] == "path_not_allowed"
        registered = await beta.post("/v1/files", json={"s3_uri": address, "purpose": "fine-tune"})
        assert registered.json()["error"]["code"] == "path_not_allowed"
        base = await post(beta, (await upload(beta, MINE))["id"], model=f"{prefix}adapter/")
        assert base.json()["error"]["code"] == "path_not_allowed"
    gets = [f"{JOBS}/{job_id}{rest}" for rest in ("", "/events", "/checkpoints", "/stages", "/logs", "/deliveries")]
    gets += [f"/v1/files/{file}{rest}" for file in (theirs["id"], *shown["result_files"]) for rest in ("", "/content")]
    gets += [f"/v1/models/{model}", "/v1/adapters/secret-desk"]
    assert {(await beta.get(path)).status_code for path in gets} == {404}
    posts = [f"{JOBS}/{job_id}/{action}" for action in ("cancel", "pause", "resume", "retry")]
    assert {(await beta.post(path)).status_code for path in posts} == {404}
    for name in (model, "secret-desk", f"{model}:ckpt-step-5"):
        said = await beta.post(
            "/v1/chat/completions", json={"model": name, "messages": [{"role": "user", "content": "x"}]}
        )
        assert said.status_code == 404
    lists = [await beta.get(path) for path in (JOBS, "/v1/files", "/v1/models", "/v1/adapters")]
    assert not [said for said in lists if "secret" in said.text or job_id in said.text]
    assert (await alpha.get(f"{JOBS}/{job_id}")).json() == shown
