"""A database older than the objects on S3, as after a restore: what it does not know of is registered again.

Results are found by their manifests below the output prefixes that jobs used; uploads by their keys. A result goes to the one
project there is, or to the one that is named: a manifest does not tell.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.doctor.finding import Finding, Patient
from app.files.storage import connect
from app.housekeeping import objects as sweeps
from app.housekeeping.house import House
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.jobs.service import output_prefix
from app.models import FINAL, ApiKey, Checkpoint, File, Job, Project, new_id
from app.nextflow import process
from app.worker import objects
from app.worker.launch import label
from app.worker.settle import Product, keep, read_product
from finetune.config import DEFAULT_OUTPUT, JobSpec
from finetune.exit_codes import StepError
from finetune.s3 import errors, head, split
from finetune.steps import ModelSource

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

JOB = re.compile(r"ftjob-[A-Za-z0-9]{24}")
NAME_PROJECT = "llamaflow doctor --repair --project NAME"


async def results(patient: Patient) -> list[Finding]:
    """Results on S3 of jobs that the database does not know, or believes to be under way."""
    s3 = connect(patient.settings)
    prefixes: dict[str, str] = {}
    for path in await _outputs(patient):
        prefixes |= await asyncio.to_thread(_below, s3, path)
    async with patient.database.transaction() as db:
        jobs = {job.id: job for job in (await db.execute(select(Job).where(Job.id.in_(list(prefixes))))).scalars()}
    found: list[tuple[Product, Job | None]] = []
    findings = []
    for job_id, prefix in sorted(prefixes.items()):
        job = jobs.get(job_id)
        if job is not None and job.status in (Status.SUCCEEDED, Status.FAILED):
            continue
        product = await asyncio.to_thread(_product, s3, prefix, job_id)
        if job is not None and job.status == Status.CANCELLED:
            findings.append(await _left_over(patient, s3, prefix, job))
        elif product is not None:
            found.append((product, job))
        elif job is None:
            problem = "it is not known to the database, and no whole result of it is there."
            findings.append(Finding(f"objects below {prefix}", problem, "Remove them, if nobody needs them."))
    for product, job in sorted(found, key=lambda pair: pair[0].manifest.created_at):
        findings += [await _unknown(patient, product)] if job is None else await _under_way(patient, product, job)
    return findings


async def _outputs(patient: Patient) -> list[str]:
    path = Job.spec["output"]["path"].astext
    async with patient.database.transaction() as db:
        used = (await db.execute(select(path).distinct().where(path.is_not(None)))).scalars()
        return sorted({DEFAULT_OUTPUT, *used})


def _below(s3: S3Client, path: str) -> dict[str, str]:
    """The jobs that have a folder below an output path, each with its prefix. Where there is no such bucket, there are none."""
    bucket, key = split(path.rstrip("/") + "/")
    try:
        with errors(path):
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, Delimiter="/")
            keys = [row["Prefix"] for page in pages for row in page.get("CommonPrefixes", [])]
    except StepError as problem:
        if problem.code.name == "file_not_found":
            return {}
        raise
    named = {found.rstrip("/").rpartition("/")[2]: f"s3://{bucket}/{found}" for found in keys}
    return {name: prefix for name, prefix in named.items() if JOB.fullmatch(name)}


def _product(s3: S3Client, prefix: str, job_id: str) -> Product | None:
    """The whole result below a prefix, if there is one."""
    try:
        return read_product(s3, prefix, job_id)
    except ValidationError:
        return None
    except StepError as problem:
        if problem.code.name in ("file_not_found", "manifest_mismatch"):
            return None
        raise


async def _left_over(patient: Patient, s3: S3Client, prefix: str, job: Job) -> Finding:
    if patient.repair:
        await asyncio.to_thread(objects.remove, s3, prefix)
    done = "They were removed." if patient.repair else None
    return Finding(f"objects below {prefix}", f"{job.id} was cancelled, and they are still there.", repaired=done)


async def _unknown(patient: Patient, product: Product) -> Finding:
    """Register a result of a job that has no row."""
    subject, problem = (
        f"job {product.manifest.job}",
        f"its result is at {product.prefix}, and the database does not know it.",
    )
    async with patient.database.transaction() as db:
        project = await _project(db, patient)
        if project is None:
            return Finding(subject, problem, NAME_PROJECT)
        if not patient.repair:
            return Finding(subject, problem)
        key = select(ApiKey.id).where(ApiKey.project_id == project.id).order_by(ApiKey.created_at).limit(1)
        key_id = (await db.execute(key)).scalar_one_or_none()
        if key_id is None:
            return Finding(subject, problem, f"Make an API key for the project {project.name} first.")
        try:
            model = await _register(db, project, key_id, product)
        except ValidationError:
            return Finding(
                subject, problem, "Train it again: its manifest was written by another version of LlamaFlow."
            )
    return Finding(subject, problem, repaired=f"It is registered again, as {model} of the project {project.name}.")


async def _project(db: AsyncSession, patient: Patient) -> Project | None:
    """Whose the results are: the project named, or the only one."""
    query = select(Project) if patient.project is None else select(Project).where(Project.name == patient.project)
    found = (await db.execute(query.limit(2))).scalars().all()
    return found[0] if len(found) == 1 else None


async def _register(db: AsyncSession, project: Project, key_id: str, product: Product) -> str | None:
    """A row for the job, as it must have been, its checkpoints, and its version. Returns its `ft:` id."""
    manifest = product.manifest
    spec, at = JobSpec.model_validate(manifest.config), datetime.fromtimestamp(manifest.created_at, UTC)
    pins = {
        split: [
            {"uri": file.uri, "etag": file.etag, "size": file.size}
            for file in manifest.dataset.files
            if file.split == split
        ]
        for split in ("train", "validation")
    }
    base = manifest.base.model_dump(mode="json", include=set(ModelSource.model_fields))
    job = Job(
        id=manifest.job, project_id=project.id, api_key_id=key_id, spec=spec.model_dump(mode="json"), model=spec.model,
        base=base, training_file=spec.training_file, validation_file=spec.validation_file, suffix=manifest.suffix,
        training_objects=pins["train"], validation_objects=pins["validation"], seed=spec.seed,
        priority=spec.execution.priority, result_files=[], request_hash="",
    )  # fmt: skip
    await lifecycle.found(db, job, at)
    for step in sorted({step for file in manifest.files if (step := _step(file.path)) is not None}):
        db.add(
            Checkpoint(
                id=new_id("ftckpt_"), project_id=project.id, job_id=job.id, step_number=step, metrics={"step": step}
            )
        )
    await db.flush()
    await keep(db, job, product)
    await lifecycle.ended_before(db, job, at)
    return job.fine_tuned_model


def _step(path: str) -> int | None:
    match = re.match(r"checkpoints/step-(\d+)/", path)
    return int(match[1]) if match else None


async def _under_way(patient: Patient, product: Product, job: Job) -> list[Finding]:
    """End a job well that nobody holds and nothing runs of, although its result is on S3."""
    if job.cancel_requested_at is not None or output_prefix(job) != product.prefix:
        return []
    if await asyncio.to_thread(process.members, label(job.id)):
        return []
    async with patient.database.transaction() as db:
        locked = await lifecycle.lock(db, job.id)
        held = locked.lease_until is not None and locked.lease_until > await lifecycle.now(db)
        if held or locked.status in FINAL:
            return []
        problem = f"it is {locked.status}, and its whole result is at {product.prefix}."
        if not patient.repair:
            return [Finding(f"job {job.id}", problem)]
        await _finish(db, locked, product)
    return [Finding(f"job {job.id}", problem, repaired="It has succeeded.")]


async def _finish(db: AsyncSession, job: Job, product: Product) -> None:
    """The way from where the job stands to its end, every step of it."""
    job.fence += 1
    if job.status == Status.PAUSED:
        await lifecycle.resumed(db, job)
    if job.status == Status.VALIDATING:
        await lifecycle.queued(db, job, fence=job.fence)
    if job.status == Status.QUEUED:
        await lifecycle.running(db, job, fence=job.fence)
    job.pause_requested_at = None
    await keep(db, job, product)
    await lifecycle.succeeded(db, job, fence=job.fence)


async def uploads(patient: Patient) -> list[Finding]:
    """Uploads that a restored database does not know of, and the end of its being older: its count of sweeps is S3's."""
    house = House(patient.settings, patient.database)
    if not await sweeps.is_restored(house):
        return []
    s3 = connect(patient.settings)
    findings = [await _upload(patient, s3, *found) for found in await sweeps.unknown_uploads(house)]
    there = await asyncio.to_thread(sweeps.counted_there, patient.settings)
    done = None
    if patient.repair and all(found.repaired for found in findings):
        async with patient.database.transaction() as db:
            await db.execute(text("select setval('sweeps', :there)"), {"there": there})
        done = "It counts from there on."
    problem = "it counts fewer sweeps than S3: it was restored from a backup that is older than the objects."
    return [*findings, Finding("database", problem, repaired=done)]


async def _upload(patient: Patient, s3: S3Client, uri: str, project_id: str, file_id: str) -> Finding:
    """Make an upload a file again; what it was called is not known any more."""
    subject, problem = f"file {file_id}", f"it is at {uri}, and the database does not know it."
    if not patient.repair:
        return Finding(subject, problem)
    seen = await asyncio.to_thread(head, s3, uri)
    async with patient.database.transaction() as db:
        if await db.get(Project, project_id) is None:
            return Finding(subject, f"{problem} Nor its project {project_id}.", "Remove it, if nobody needs it.")
        row = File(
            id=file_id, project_id=project_id, filename=file_id, purpose="fine-tune", bytes=seen.size, uri=uri,
            etag=seen.etag, owned=True, status="processed",
        )  # fmt: skip
        db.add(row)
        await db.flush()
    return Finding(subject, problem, repaired="It is a file again, named by its id.")
