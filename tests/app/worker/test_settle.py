"""The end of a job from what lies on S3: read back before it is believed, and an accepted cancel wins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import lookup
from app.db import Database
from app.files.storage import connect
from app.jobs import lifecycle
from app.models import FINAL, AdapterVersion, Job, Run, Stage, new_id
from app.nextflow.process import ExitRecord
from app.worker import folder, presence, settle
from app.worker.claim import Claim
from app.worker.context import Context, Hand
from tests.app.worker.services import World

pytestmark = pytest.mark.db

SHA = "0" * 64
WELL = ExitRecord(0, asked=False)


def manifest(job_id: str) -> dict[str, Any]:
    """A manifest as UPLOAD_MODEL writes it, of an adapter of four bytes."""
    resolved = {
        "n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0, "learning_rate": 1e-3, "warmup_ratio": 0.1,
        "weight_decay": 0.0, "lr_scheduler": "cosine", "max_length": 128, "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0, "save_steps": 5, "save_total_limit": 3, "eval_steps": 10, "total_steps": 10,
        "n_examples": 10, "n_validation": 0, "tokens": 100, "trained_tokens": 50, "longest": 10, "data_sha256": SHA,
    }  # fmt: skip
    base = {"id": "tiny", "kind": "path", "location": "x", "revision": SHA, "parameters": 1, "template_sha256": SHA}
    return {
        "job": job_id, "suffix": None, "created_at": 1, "base": base, "dataset": {"files": []}, "config": {},
        "resolved": resolved, "result": {"status": "succeeded", "train_key": "k", "trained_tokens": 50},
        "evaluation": {"rows": 3, "loss": 0.5, "samples": []}, "code_version": "1", "image": None,
        "files": [{"path": "adapter/adapter_model.safetensors", "sha256": SHA, "size": 4}],
    }  # fmt: skip


async def finished(world: World, **wrong: Any) -> tuple[Context, Hand, Run]:
    """A running job whose run has ended well and uploaded; `wrong` stands in its manifest."""
    project = await world.project()
    job_id = await world.job(project, status="running", suffix="a")
    home = folder.of(world.settings, job_id)
    row = Run(
        id=new_id("run_"), project_id=project, job_id=job_id, attempt=1, fence=0, profile="local", host="h",
        session_uuid="u", folder=str(home.run(1)),
    )  # fmt: skip
    async with world.database.transaction() as db:
        db.add(row)
        await db.flush()
        stage = Stage(id=new_id("stage_"), project_id=project, job_id=job_id, run_id=row.id, process="UPLOAD_MODEL")
        stage.task_hash, stage.attempt, stage.status = "aa/bb", 1, "running"
        db.add(stage)
    world.put(f"model/{job_id}/adapter/adapter_model.safetensors", b"1234")
    world.put(f"model/{job_id}/manifest.json", json.dumps(manifest(job_id) | wrong).encode())
    return Context(world.settings, world.database, presence.myself(world.settings)), Hand(Claim(job_id, 0, None)), row


async def succeed(world: World, context: Context, hand: Hand, run: Run) -> Any:
    await settle.succeed(context, hand, await world.get(hand.job_id), run, WELL)
    return await world.get(hand.job_id)


async def test_success_is_believed_when_the_result_lies_on_s3(stored: World) -> None:
    context, hand, run = await finished(stored)
    job = await succeed(stored, context, hand, run)
    assert (job.status, job.trained_tokens, job.usage["estimated_cost"]) == ("succeeded", 50, None)
    (version,) = await stored.rows(AdapterVersion)
    assert (version.model, version.metrics) == (job.fine_tuned_model, {"rows": 3, "loss": 0.5})
    assert [stage.status for stage in await stored.rows(Stage)] == ["aborted"]
    assert (await succeed(stored, context, hand, run)).last_seq == job.last_seq


class Lossy:
    """The database over a connection that is cut once, between the commit that ends a job and its answer."""

    def __init__(self, database: Database, job_id: str) -> None:
        self._database, self._job_id, self.cut = database, job_id, False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        async with self._database.transaction() as db:
            yield db
        async with self._database.transaction() as db:
            ended = (await db.get_one(Job, self._job_id)).status in (*FINAL, "paused")
        if ended and not self.cut:
            self.cut = True
            raise OperationalError("commit", {}, ConnectionError("cut"))


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "paused"])
async def test_no_keys_are_left_although_the_commits_answer_was_lost(stored: World, end: str) -> None:
    context, hand, run = await finished(stored)
    home = folder.of(stored.settings, hand.job_id)
    home.root.mkdir(parents=True)
    folder.write_credentials(home, stored.settings)
    assert list(home.root.glob("*credentials"))
    async with stored.database.transaction() as db:
        job = await db.get_one(Job, hand.job_id)
        job.cancel_requested_at = job.created_at if end == "cancelled" else None
        job.pause_requested_at = job.created_at if end == "paused" else None
    lossy = Lossy(stored.database, hand.job_id)
    context = replace(context, database=cast("Database", lossy))
    match end:
        case "succeeded":
            await settle.succeed(context, hand, job, run, WELL)
        case "failed":
            await settle.fail(context, hand, run, {"code": "x", "message": "x", "param": None}, WELL)
        case "cancelled":
            await settle.cancel(context, hand, job, run)
        case _:
            await settle.pause(context, hand, run, WELL)
    assert ((await stored.get(hand.job_id)).status, lossy.cut) == (end, True)
    assert list(home.root.glob("*credentials")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"job": "another-job"},
        {"files": [{"path": "adapter/adapter_model.safetensors", "sha256": SHA, "size": 5}]},
        {"files": []},
        {"result": {}},
    ],
    ids=["of another job", "of a longer file", "of no adapter", "no manifest"],
)
async def test_a_result_that_is_not_as_its_manifest_says_fails(stored: World, wrong: dict[str, Any]) -> None:
    context, hand, run = await finished(stored, **wrong)
    job = await succeed(stored, context, hand, run)
    assert (job.status, job.error["code"]) == ("failed", "manifest_mismatch")
    assert await stored.rows(AdapterVersion) == []


async def test_a_result_that_is_not_there_fails(stored: World) -> None:
    context, hand, run = await finished(stored)
    settle.objects.remove(connect(stored.settings), f"s3://llamaflow-data/model/{hand.job_id}/")
    job = await succeed(stored, context, hand, run)
    assert (job.status, job.error["code"]) == ("failed", "manifest_mismatch")
    assert "not on S3" in job.error["message"]


async def test_a_model_of_all_weights_is_its_own_base_and_no_version_of_an_adapter(stored: World) -> None:
    files = [
        {"path": "model/config.json", "sha256": "1" * 64, "size": 2},
        {"path": "model/model.safetensors", "sha256": "2" * 64, "size": 4},
        {"path": "model/README.md", "sha256": "3" * 64, "size": 1},
    ]
    context, hand, run = await finished(stored, files=files)
    stored.put(f"model/{hand.job_id}/model/model.safetensors", b"1234")
    job = await succeed(stored, context, hand, run)
    assert job.status == "succeeded"
    (version,) = await stored.rows(AdapterVersion)
    place = f"s3://llamaflow-data/model/{hand.job_id}/model/"
    wanted = hashlib.sha256(f"config.json\0{'1' * 64}\nmodel.safetensors\0{'2' * 64}\n".encode()).hexdigest()
    assert (version.base["kind"], version.base["location"], version.base["revision"]) == ("s3", place, wanted)
    assert (version.adapter_id, version.version, version.model) == (None, None, job.fine_tuned_model)
    async with stored.database.transaction() as db:
        found = await lookup.find(db, version.project_id, version.model)
    assert found is not None
    assert (found.base.location, found.base.revision, found.adapter) == (place, wanted, None)


async def test_accepted_cancel_never_ends_succeeded(stored: World) -> None:
    """The cancel comes after the upload and before the end is written."""
    context, hand, run = await finished(stored)
    await stored.cancel(hand.job_id)
    assert (await succeed(stored, context, hand, run)).status == "running"
    await settle.cancel(context, hand, await stored.get(hand.job_id), run)
    job = await stored.get(hand.job_id)
    assert (job.status, job.fine_tuned_model, job.output) == ("cancelled", None, None)
    assert (await stored.rows(AdapterVersion), stored.keys(f"model/{hand.job_id}/")) == ([], [])


async def test_a_hand_that_lost_its_fence_settles_nothing(stored: World) -> None:
    context, hand, run = await finished(stored)
    stale = Hand(Claim(hand.job_id, hand.fence - 1, None))
    with pytest.raises(lifecycle.FenceLost):
        await succeed(stored, context, stale, run)
    assert (await stored.get(hand.job_id)).status == "running"
