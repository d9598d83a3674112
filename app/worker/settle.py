"""The end of a job: status, adapter version, result file, event and deliveries in one transaction under the row's lock.

What happened is judged by evidence.py; an accepted cancel wins over whatever else happened.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from pydantic import ValidationError
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import gate, pointer
from app.adapters.service import WHOLE, register_version
from app.events import service as events
from app.files.storage import connect
from app.jobs import lifecycle, measured
from app.jobs.lifecycle import Status
from app.jobs.service import output_prefix
from app.models import FINAL, Checkpoint, File, Job, Run, Stage, new_id
from app.nextflow import process
from app.nextflow.process import ExitRecord
from app.nextflow.progress import FINE_TUNE
from app.runs import tokens
from app.worker import deaths, objects, remote
from app.worker import folder as folders
from app.worker.context import Context, Hand
from app.worker.launch import last_run
from app.worker.outage import insist
from finetune.exit_codes import BY_NAME, StepError
from finetune.model.cache import revision
from finetune.steps import Base, Manifest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
LATE_OBJECT_SECONDS = 2.0
WEIGHTS = re.compile(r"adapter/adapter_model\.safetensors|model/[^/]+\.safetensors")
T = TypeVar("T")
log = structlog.get_logger("worker.settle")


@dataclass(frozen=True)
class Product:
    """A finished job's result on S3: its prefix, the manifest read back from there, and the sha256 of its bytes."""

    prefix: str
    manifest: Manifest
    sha256: str


async def succeed(context: Context, hand: Hand, job: Job, run: Run, record: ExitRecord) -> None:
    """End the job well, or as failed if its result is not on S3 as it should be."""
    product = await _read_back(context, hand, job)
    if isinstance(product, StepError):
        await fail(context, hand, run, product.as_error(), record)
        return
    if remote.is_remote(context.settings, run.profile):
        await _remove(context, hand, remote.mirror_prefix(job))
    await insist(lambda: _succeeded(context, hand, run, product, record))
    await pointer.write_of_job(context.database, context.settings, job.project_id, hand.job_id)


async def _succeeded(context: Context, hand: Hand, run: Run, product: Product, record: ExitRecord) -> None:
    async with context.database.transaction() as db:
        job = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
        if job.status in FINAL:
            return
        if job.cancel_requested_at is not None:
            return  # the caller looks again, and cancels
        if job.pause_requested_at is not None:
            await events.record(db, job, "The job ended before it could be paused")
        await close(db, run, record)
        verdict = await gate.judge(db, job, product.manifest.evaluation)
        if verdict is not None and verdict.fails:
            job.output = _output(product)
            message = f"{verdict.sentence('The new version')}. {BY_NAME['gate_rejected'].remedy}"
            error = StepError("gate_rejected", message, param="evaluation.gate").as_error()
            await forget_keys(context, hand)
            await lifecycle.failed(db, job, error, fence=hand.fence)
            return
        await keep(db, job, product)
        await measured.keep(db, job, product.manifest, run.profile, context.settings)
        await forget_keys(context, hand)
        await lifecycle.succeeded(db, job, fence=hand.fence)


async def forget_keys(context: Context, hand: Hand) -> None:
    """Remove the job's keys: nothing of it will run again.

    To be called under the job's lock, before the commit that ends it: after that commit nobody may be left who would, and
    without the lock the job may be another worker's.
    """
    try:
        await asyncio.to_thread(folders.forget_credentials, folders.of(context.settings, hand.job_id))
    except OSError as problem:  # a folder that cannot be had must not keep the job from its end; the sweep tries again
        log.warning("keys_not_removed", job=hand.job_id, error=str(problem))


async def keep(db: AsyncSession, job: Job, product: Product) -> None:
    """Everything that the job's row, its result file and the registry learn of the result."""
    manifest, result = product.manifest, product.manifest.result
    job.trained_tokens = result.trained_tokens
    job.output = _output(product)
    job.usage = {"gpu_seconds": result.gpu_seconds, "cpu_seconds": result.cpu_seconds, "estimated_cost": None}
    job.resolved = job.resolved or manifest.resolved.model_dump(mode="json")
    base = _own_base(product) or manifest.base
    verdict = await gate.judge(db, job, manifest.evaluation)
    version = await register_version(
        db, job, base.model_dump(mode="json"), product.prefix, product.sha256, _metrics(manifest), verdict
    )
    job.fine_tuned_model = version.model
    await _result_file(db, job, product)
    for path in {file.path.rpartition("/")[0] for file in manifest.files if file.path.startswith("checkpoints/step-")}:
        step = int(path.removeprefix("checkpoints/step-"))
        here = Checkpoint.job_id == job.id, Checkpoint.step_number == step
        await db.execute(update(Checkpoint).where(*here).values(uri=f"{product.prefix}{path}/"))


def _output(product: Product) -> dict[str, Any]:
    return {
        "uri": product.prefix,
        "manifest_sha256": product.sha256,
        "model_s3": f"{product.prefix}model_s3.txt",
    }


def _own_base(product: Product) -> Base | None:
    """What a model of all weights is as a base; None for an adapter."""
    files = {
        file.path.removeprefix(WHOLE): file.sha256 for file in product.manifest.files if file.path.startswith(WHOLE)
    }
    if not files:
        return None
    place = f"{product.prefix}{WHOLE}"
    own = {"id": place, "kind": "s3", "location": place, "revision": revision(files), "template": None}
    return product.manifest.base.model_copy(update=own)


async def _result_file(db: AsyncSession, job: Job, product: Product) -> None:
    csv = next((file for file in product.manifest.files if file.path == "metrics.csv"), None)
    if csv is None:
        return
    row = File(
        id=new_id("file-"), project_id=job.project_id, filename="metrics.csv", purpose="fine-tune-results",
        bytes=csv.size, uri=f"{product.prefix}metrics.csv", sha256=csv.sha256, owned=False, status="processed",
    )  # fmt: skip
    db.add(row)
    job.result_files = [row.id]


def _metrics(manifest: Manifest) -> dict[str, Any]:
    result, evaluation = manifest.result, manifest.evaluation
    found = {
        "train_loss": result.train_loss,
        "valid_loss": result.valid_loss,
        "valid_mean_token_accuracy": result.valid_mean_token_accuracy,
    }
    if evaluation is not None:
        found |= evaluation.model_dump(mode="json", exclude={"samples", "gate"})
    return {name: value for name, value in found.items() if value is not None}


async def fail(
    context: Context, hand: Hand, run: Run | None, error: dict[str, str | None], record: ExitRecord | None = None
) -> None:
    """End the job as failed; nothing happens if it was to be cancelled: the caller looks again."""

    async def once() -> None:
        async with context.database.transaction() as db:
            job = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
            if job.status in FINAL or job.cancel_requested_at is not None:
                return
            if (last := run or await last_run(db, job.id)) is not None:
                await close(db, last, record)
            await forget_keys(context, hand)
            await lifecycle.failed(db, job, error, fence=hand.fence)

    await insist(once)


async def pause(context: Context, hand: Hand, run: Run | None, record: ExitRecord | None = None) -> None:
    """Call a job paused whose run has stopped. A pause that was withdrawn only closes the run; a cancel is left to the caller."""

    async def once() -> None:
        async with context.database.transaction() as db:
            job = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
            if job.status not in (Status.QUEUED, Status.RUNNING) or job.cancel_requested_at is not None:
                return
            if run is not None:
                await close(db, run, record)
            await forget_keys(context, hand)  # the next launch writes them anew
            if job.pause_requested_at is not None:
                await lifecycle.paused(db, job, fence=hand.fence)

    await insist(once)


async def cancel(context: Context, hand: Hand, job: Job, run: Run | None) -> None:
    """End the job as cancelled. Nothing of it runs any more; what it uploaded is removed first."""
    if run is not None:
        await _remove(context, hand, output_prefix(job))
    record = process.exit_record(Path(run.folder)) if run is not None else None

    async def once() -> None:
        async with context.database.transaction() as db:
            locked = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
            if locked.status in FINAL:
                return
            if run is not None:
                await close(db, run, record)
            await forget_keys(context, hand)
            await lifecycle.cancelled(db, locked, fence=hand.fence)

    await insist(once)


async def _remove(context: Context, hand: Hand, prefix: str) -> None:
    try:
        removed = last = await _insist_on_s3(hand, lambda: objects.remove(connect(context.settings), prefix))
        while last:  # an upload was under way: what S3 had received of it when it was ended may appear a moment later
            await asyncio.sleep(LATE_OBJECT_SECONDS)
            last = await _insist_on_s3(hand, lambda: objects.remove(connect(context.settings), prefix))
            removed += last
    except StepError as problem:  # no such bucket, or no right to remove: then nothing was put there either
        log.warning("not_removed", job=hand.job_id, prefix=prefix, error=problem.message)
    else:
        log.info("removed", job=hand.job_id, prefix=prefix, objects=removed)


async def close_run(context: Context, hand: Hand, run: Run, record: ExitRecord | None, lost: str | None) -> bool:
    """Close a run that did not end its job.

    Args:
        record: How its Nextflow ended, if that is known.
        lost: What to tell the user when the run was lost; None when it was ended on purpose.
    Returns:
        Whether the job may go on: it failed with `crash_loop` if nothing was done since it was lost twice before.
    """

    async def once() -> bool:
        async with context.database.transaction() as db:
            job = await lifecycle.lock(db, hand.job_id, fence=hand.fence)
            if job.status in FINAL:
                return False
            if (await db.get_one(Run, run.id)).finished_at is not None:
                return True
            await close(db, run, record)
            if lost is None or not await deaths.record(db, job, lost):
                return True
            await forget_keys(context, hand)
            await lifecycle.failed(db, job, deaths.crash_loop(), fence=hand.fence)
            return False

    return await insist(once)


async def close(db: AsyncSession, run: Run, record: ExitRecord | None) -> None:
    """The run is over: its row says how, its token opens nothing more, and stages without an end of their own are aborted."""
    row = await db.get_one(Run, run.id)
    now = await lifecycle.now(db)
    if row.finished_at is None:
        row.finished_at, row.exit_status = now, record.status if record else None
    await tokens.revoke(db, run.id)
    unended = select(Stage).where(Stage.run_id == run.id, Stage.status.in_(("submitted", "running")))
    for stage in (await db.execute(unended)).scalars():
        stage.status, stage.finished_at = "aborted", await asyncio.to_thread(_last_sign, stage, row.folder) or now


def _last_sign(stage: Stage, run_folder: str) -> datetime | None:
    """When a task that was killed was last heard of: the hours that its machine was off are none of its running."""
    if stage.workdir is None or stage.started_at is None:
        return None
    files = [Path(stage.workdir) / name for name in (".command.begin", ".command.out", ".command.err", ".command.log")]
    if stage.process == FINE_TUNE:
        files.append(Path(run_folder).parent / "train" / "progress.jsonl")
    last = max((path.stat().st_mtime for path in files if path.exists()), default=None)
    return None if last is None else max(stage.started_at, datetime.fromtimestamp(last, UTC))


async def _read_back(context: Context, hand: Hand, job: Job) -> Product | StepError:
    """The result as it lies on S3, read as a stranger would."""
    prefix = output_prefix(job)

    def once() -> Product:
        return read_product(connect(context.settings), prefix, job.id)

    try:
        return await _insist_on_s3(hand, once)
    except StepError as problem:
        if problem.code.name == "file_not_found":
            return StepError(
                "manifest_mismatch", f"The pipeline ended well, but its result is not on S3: {problem.message}"
            )
        return problem
    except ValidationError:
        return StepError("manifest_mismatch", f"{prefix}manifest.json is no manifest.")


def read_product(s3: S3Client, prefix: str, job_id: str) -> Product:
    """The result below a prefix, by its manifest. Blocking.

    Raises:
        StepError: `manifest_mismatch`: it is not this job's, or its weights are not there whole; and those of S3.
        ValidationError: It is no manifest.
    """
    content = objects.read(s3, f"{prefix}manifest.json")
    manifest = Manifest.model_validate_json(content)
    weights = [file for file in manifest.files if WEIGHTS.fullmatch(file.path)]
    whole = all(objects.size(s3, prefix + file.path) == file.size for file in weights)
    if manifest.job != job_id or not weights or not whole:
        raise StepError("manifest_mismatch", f"{prefix}manifest.json does not describe this job's adapter or model.")
    return Product(prefix, manifest, hashlib.sha256(content).hexdigest())


async def _insist_on_s3(hand: Hand, work: Callable[[], T]) -> T:
    """Do blocking `work` until S3 answers. Other failures are raised.

    Raises:
        Interrupted: The worker goes; the next one does it.
    """
    turn = 0
    while True:
        try:
            return await asyncio.to_thread(work)
        except StepError as problem:
            if problem.code.name != "s3_unavailable":
                raise
            log.warning("s3_away", job=hand.job_id, error=problem.message)
        if hand.leave or hand.halt:
            raise Interrupted
        await hand.rest(RETRY_SECONDS[min(turn, len(RETRY_SECONDS) - 1)])
        turn += 1


class Interrupted(Exception):
    """The worker was told to go while it waited."""
