"""The worker with a real Nextflow on the pipeline's stubs: a job's whole way, failures, a cancel, a stop and a start."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.models import AdapterVersion, Checkpoint, File, Run, Stage
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from tests.app.worker.services import World, until

pytestmark = pytest.mark.pipeline

STAGES = ["DOWNLOAD_DATA", "EVALUATE", "FETCH_MODEL", "FINE_TUNE", "PREPARE_DATA", "UPLOAD_MODEL"]

ORDER = [
    "Fine-tuning job started",
    "DOWNLOAD_DATA ended with exit status 69; it is tried again (attempt 2)",
    "Training started: 10 steps",
    "Step 10/10: training loss 0.10",
    "The job has successfully completed",
]

Behave = Callable[..., None]


async def training(world: World, job_id: str) -> Any:
    """The job, once its training has made a step."""
    job = await world.get(job_id)
    return job if (job.progress or {}).get("step") else None


def lines(world: World, job_id: str) -> list[dict[str, Any]]:
    """The trainer's progress.jsonl."""
    text = (folder.of(world.settings, job_id).train / "progress.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


async def test_a_job_goes_from_its_dataset_to_a_registered_adapter(stored: World, stub_tasks: Behave) -> None:
    stub_tasks(fault="download=s3_unavailable:once")
    job_id = await stored.job(await stored.project(), suffix="Schema v1")
    async with stored.working():
        job = await until(lambda: stored.is_over(job_id), 60)
    prefix = f"s3://llamaflow-data/model/{job_id}/"
    assert (job.status, job.error, job.output["uri"]) == ("succeeded", None, prefix)
    assert job.fine_tuned_model == f"ft:tiny:default:Schema v1:{job_id[-8:]}"
    assert (job.trained_tokens, job.resolved["total_steps"], job.progress["percent"]) == (50, 10, 100.0)
    found = sorted((stage.process, stage.status) for stage in await stored.rows(Stage))
    assert found == sorted([("DOWNLOAD_DATA", "failed"), *((name, "succeeded") for name in STAGES)])
    (version,), (result,) = await stored.rows(AdapterVersion), await stored.rows(File)
    assert (version.model, version.uri) == (job.fine_tuned_model, prefix)
    assert (result.purpose, result.uri, [result.id]) == ("fine-tune-results", f"{prefix}metrics.csv", job.result_files)
    saved = {row.step_number: row.uri for row in await stored.rows(Checkpoint)}
    assert saved == {step: f"{prefix}checkpoints/step-{step}/" for step in (5, 10)}
    told = await stored.messages(job_id)
    assert [message for message in told if message in ORDER] == ORDER
    assert _holding(folder.of(stored.settings, job_id).root, stored.settings.s3_secret_key) == []


def _holding(home: Path, secret: SecretStr | None) -> list[Path]:
    """The files of a job in which the secret stands."""
    files = [path for path in home.rglob("*") if path.is_file()]
    assert secret is not None
    assert len(files) > 50
    return [path for path in files if secret.get_secret_value().encode() in path.read_bytes()]


async def test_a_mistake_found_by_a_stage_ends_the_job_with_its_code(stored: World, stub_tasks: Behave) -> None:
    stub_tasks(fault="prepare=overlength_examples")
    job_id = await stored.job(await stored.project())
    async with stored.working():
        job = await until(lambda: stored.is_over(job_id), 60)
    assert (job.status, job.error["code"]) == ("failed", "overlength_examples")
    assert "max_length" in job.error["message"]
    assert await stored.rows(AdapterVersion) == []
    assert not (folder.of(stored.settings, job_id).root / "credentials").exists()


async def test_a_cancel_during_training_leaves_nothing_behind(stored: World, stub_tasks: Behave) -> None:
    stub_tasks(seconds="20")
    job_id = await stored.job(await stored.project())
    stored.put(f"model/{job_id}/adapter/half", b"x")
    async with stored.working():
        await until(lambda: training(stored, job_id), 60)
        home = folder.of(stored.settings, job_id).root
        assert stat.S_IMODE((home / "credentials").stat().st_mode) == 0o600
        await stored.cancel(job_id)
        job = await until(lambda: stored.is_over(job_id), 30)
        assert process.members(label(job_id)) == []
    assert (job.status, job.fine_tuned_model, job.error) == ("cancelled", None, None)
    assert stored.keys(f"model/{job_id}/") == []
    assert await stored.rows(AdapterVersion) == []
    assert (await stored.messages(job_id))[-1] == "Fine-tuning job cancelled"


async def test_a_halted_worker_ends_the_run_and_the_next_goes_on_where_it_was(
    stored: World, stub_tasks: Behave
) -> None:
    stub_tasks(seconds="4")
    job_id = await stored.job(await stored.project())
    async with stored.working() as stop:
        await until(lambda: training(stored, job_id), 60)
        stop.ask(halt=True)
    job = await stored.get(job_id)
    assert (job.status, job.worker_id, process.members(label(job_id))) == ("running", None, [])
    async with stored.working():
        job = await until(lambda: stored.is_over(job_id), 60)
    assert job.status == "succeeded"
    assert [line["step"] for line in lines(stored, job_id) if line["event"] == "step"] == list(range(1, 11))
    assert [run.attempt for run in await stored.rows(Run)] == [1, 2]
    assert {stage.status for stage in await stored.rows(Stage)} == {"succeeded", "cached", "aborted"}
