"""What trainings took, for the estimates of later ones: kept when a job succeeds, read before one is created and as it is prepared.

Only a project's own: what others train is not to be guessed from here. Reads and writes measurements and a job's `estimate`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.events import service as events
from app.models import Job, Measurement
from app.settings import Settings
from finetune.config import JobSpec
from finetune.estimate import device as devices
from finetune.estimate.device import Device
from finetune.estimate.prepared import Facts, expected
from finetune.estimate.reckon import Known
from finetune.estimate.result import duration, gigabytes, sentence
from finetune.estimate.shape import Shape, of_name, of_parameters
from finetune.estimate.speed import Measured
from finetune.steps import Manifest

LOOKED_AT = 50
"""Measurements read for one estimate, the newest."""


async def known(
    db: AsyncSession, project_id: str, spec: JobSpec, base: str, shape: Shape | None, settings: Settings
) -> Known:
    """What is known of a job's device, its base and earlier trainings like it.

    Args:
        db: The transaction.
        project_id: Whose trainings.
        spec: The job.
        base: Its base's id.
        shape: Of the base, if it can be read; else its size is taken from an earlier training, or from its name.
        settings: The price table.
    """
    device = await _device(db, project_id, spec)
    query = select(Measurement).where(
        Measurement.project_id == project_id,
        Measurement.technique == spec.technique,
        Measurement.method == spec.method.type,
        Measurement.kind == device.kind,
        Measurement.profile == spec.execution.profile,
    )
    if device.name is not None:
        query = query.where(Measurement.device.ilike(f"%{_literal(device.name)}%", escape="\\"))
    rows = (await db.execute(query.order_by(Measurement.created_at.desc()).limit(LOOKED_AT))).scalars().all()
    if shape is None:
        shape = next((of_parameters(row.parameters) for row in rows if row.base == base), of_name(base))
    return Known(
        device=device,
        shape=shape,
        runs=[_measured(row) for row in rows],
        base=base,
        prices=settings.prices,
        currency=settings.currency,
    )


async def expect(db: AsyncSession, job: Job, data: dict[str, Any], settings: Settings) -> None:
    """Keep and tell what a prepared job will take: counts are exact by now, and nothing has been spent.

    Args:
        db: The transaction that records the end of PREPARE_DATA; the caller holds the job's row lock.
        job: The job.
        data: What PREPARE_DATA reported; without its facts (a stub's) nothing is told.
        settings: The price table.
    """
    try:
        facts, spec = Facts.model_validate(data.get("facts")), JobSpec.model_validate(job.spec)
    except ValidationError:
        return
    found = await known(db, job.project_id, spec, str(job.base["id"]), facts.shape, settings)
    made = expected(facts, spec, found, job.model)
    shown = made.model_dump(mode="json", exclude={"object", "error", "model"})
    job.estimate = shown | {"bytes_a_token": facts.bytes_a_token, "actual": None, "error": None}
    message = f"{sentence(made)}."
    await events.record(db, job, message, data={"stage": "PREPARE_DATA", "estimate": shown})


async def keep(db: AsyncSession, job: Job, manifest: Manifest, profile: str, settings: Settings) -> None:
    """Keep what a training took, and how far the estimate was off. Twice is once.

    Args:
        db: The transaction that ends the job.
        job: Its `usage` gets the cost, by the price table.
        manifest: Of its result.
        profile: Where it ran.
        settings: The price table.
    """
    result, resolved = manifest.result, manifest.resolved
    spec = JobSpec.model_validate(job.spec)
    kind: Literal["cpu", "gpu"] = "gpu" if result.gpu_seconds > 0 else "cpu"
    row = {
        "job_id": job.id,
        "project_id": job.project_id,
        "base": manifest.base.id,
        "revision": manifest.base.revision,
        "parameters": manifest.base.parameters,
        "technique": resolved.technique,
        "method": spec.method.type,
        "profile": profile,
        "kind": kind,
        "device": result.device if kind == "gpu" else f"cpu, {result.threads} threads",
        "tokens": resolved.tokens * resolved.n_epochs,
        "longest": resolved.longest,
        "steps": result.steps,
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "bytes_a_token": (job.estimate or {}).get("bytes_a_token"),
    }
    if result.seconds > 0:
        await db.execute(insert(Measurement).values(row).on_conflict_do_nothing())
    execution = spec.execution
    hour = devices.price(settings.prices, execution, Device(kind, execution.gpu_type, max(1, execution.gpus)))
    cost = None if hour is None else round(hour * result.seconds / 3600, 6)
    job.usage = (job.usage or {}) | {
        "estimated_cost": cost,
        "currency": settings.currency if cost is not None else None,
    }
    if job.estimate is None or job.estimate.get("actual") is not None:
        return
    actual = {
        "seconds": result.seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "total_steps": result.steps,
        "cost": cost,
    }
    off = {name: miss(job.estimate.get(name), value) for name, value in actual.items()}
    job.estimate = job.estimate | {"actual": actual, "error": off}
    await events.record(db, job, _told(job.estimate, actual), data={"estimate": job.estimate})


def miss(range_: Any, value: float | None) -> dict[str, Any] | None:
    """How far an estimate was off: whether the value lies within, and its ratio to the geometric middle of the range."""
    if not isinstance(range_, list) or value is None:
        return None
    low, high = (float(bound) for bound in range_)
    middle = math.sqrt(low * high) if low > 0 else high / 2
    return {"within": low <= value <= high, "ratio": round(value / middle, 3) if middle else None}


def _told(estimate: dict[str, Any], actual: dict[str, Any]) -> str:
    parts = [
        f"The training took {duration(actual['seconds'])} and {gigabytes(actual['peak_memory_bytes'])} GB of memory"
    ]
    expected_ = []
    if estimate.get("seconds"):
        expected_.append(" to ".join(duration(bound) for bound in estimate["seconds"]))
    if estimate.get("peak_memory_bytes"):
        expected_.append(" to ".join(gigabytes(bound) for bound in estimate["peak_memory_bytes"]) + " GB")
    return "; expected were ".join([*parts, *([" and ".join(expected_)] if expected_ else [])])


async def _device(db: AsyncSession, project_id: str, spec: JobSpec) -> Device:
    """What the job asks for; where it asks for nothing, what the project's last training of that profile ran on."""
    asked = devices.of_job(spec.execution)
    if asked.kind == "gpu" and spec.execution.gpus + bool(spec.execution.gpu_type):
        return asked
    query = select(Measurement.kind).where(
        Measurement.project_id == project_id, Measurement.profile == spec.execution.profile
    )
    last = (await db.execute(query.order_by(Measurement.created_at.desc()).limit(1))).scalar_one_or_none()
    return asked if last is None or last == asked.kind else Device("gpu" if last == "gpu" else "cpu")


def _measured(row: Measurement) -> Measured:
    return Measured(
        base=row.base,
        parameters=row.parameters,
        device=row.device,
        tokens=row.tokens,
        steps=row.steps,
        seconds=row.seconds,
        peak_memory_bytes=row.peak_memory_bytes,
        bytes_a_token=row.bytes_a_token,
        longest=row.longest,
    )


def _literal(text: str) -> str:
    """A text as LIKE takes it literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
