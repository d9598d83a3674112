"""Rows as clients see them. Pure: everything it needs is given."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from app.adapters.service import fine_tuned_model_name
from app.jobs import schemas
from app.models import Checkpoint, Job, Run, Stage
from finetune.config import Hyperparameters

OPENAIS = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
METRICS = (
    "step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy", "full_valid_loss",
    "full_valid_mean_token_accuracy",
)  # fmt: skip


def job(row: Job, adapter: tuple[str, int, bool] | None, run: Run | None) -> schemas.Job:
    """A job.

    Args:
        adapter: Name, version and whether it is promoted, of what the job registered.
        run: Its newest.
    """
    hyperparameters = _hyperparameters(row)
    kind: str = row.spec.get("method", {}).get("type", "supervised")
    own = {name: hyperparameters[name] for name in OPENAIS if name in hyperparameters}
    return schemas.Job(
        id=row.id,
        created_at=int(row.created_at.timestamp()),
        error=schemas.JobError(**row.error) if row.error else None,
        fine_tuned_model=row.fine_tuned_model,
        finished_at=seconds(row.finished_at),
        hyperparameters=hyperparameters,
        model=row.model,
        organization_id=row.project_id,
        result_files=row.result_files,
        seed=row.seed,
        status=row.status,
        trained_tokens=row.trained_tokens,
        training_file=row.training_file,
        validation_file=row.validation_file,
        estimated_finish=seconds(row.estimated_finish),
        integrations=None,
        metadata=row.job_metadata,
        method={"type": kind, kind: {"hyperparameters": own}},
        suffix=row.suffix,
        technique=row.spec.get("technique", "lora"),
        progress=schemas.Progress(**row.progress) if row.progress else None,
        callback_url=row.callback_url,
        output=row.output,
        adapter=schemas.JobAdapter(name=adapter[0], version=adapter[1], promoted=adapter[2]) if adapter else None,
        run=schemas.JobRun(attempt=run.attempt, profile=run.profile) if run else None,
        usage=row.usage,
        estimate=_estimate(row),
        retry_of=row.retry_of,
    )


def _estimate(row: Job) -> dict[str, Any] | None:
    if row.estimate is None:
        return None
    return {name: value for name, value in row.estimate.items() if name not in ("bytes_a_token", "warnings")}


def _hyperparameters(row: Job) -> dict[str, Any]:
    """As asked for; each replaced by its resolved value once that is known."""
    asked: dict[str, Any] = row.spec.get("hyperparameters", {})
    resolved = row.resolved or {}
    known = {name: resolved.get(name, asked.get(name)) for name in Hyperparameters.model_fields}
    return {name: value for name, value in known.items() if value is not None}


def checkpoint(row: Checkpoint, of: Job, project_name: str) -> schemas.Checkpoint:
    """A checkpoint; its model's name is told before the job has ended."""
    model = of.fine_tuned_model or fine_tuned_model_name(of, project_name)
    return schemas.Checkpoint(
        id=row.id,
        created_at=int(row.created_at.timestamp()),
        fine_tuned_model_checkpoint=f"{model}:ckpt-step-{row.step_number}",
        fine_tuning_job_id=row.job_id,
        step_number=row.step_number,
        metrics={name: row.metrics.get(name) for name in METRICS if row.metrics.get(name) is not None},
        uri=row.uri,
    )


def stage(row: Stage, run: int) -> schemas.Stage:
    """A stage of the job's `run`-th run."""
    return schemas.Stage(
        id=row.id,
        name=row.process,
        run=run,
        attempt=row.attempt,
        status=row.status,
        exit_status=row.exit_status,
        peak_memory_bytes=row.peak_rss_bytes,
        submitted_at=seconds(row.submitted_at),
        started_at=seconds(row.started_at),
        finished_at=seconds(row.finished_at),
    )


def seconds(at: datetime | None) -> int | None:
    """Unix seconds."""
    return None if at is None else int(at.timestamp())
