"""The first claim: is the dataset there, which objects exactly, and can its rows be read? Then the job is queued, or fails.

Reads S3 and one file row; needs no tokenizer and no model. While S3 is away it waits: nothing is lost and nothing fails.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database
from app.files.storage import connect
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.models import File, Job
from app.settings import Settings
from app.worker import deaths, objects
from app.worker.claim import Claim
from app.worker.outage import insist
from finetune.config import MIN_EXAMPLES, JobSpec
from finetune.data.formats import check, too_few
from finetune.exit_codes import StepError
from finetune.steps import Pinned

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

WAIT_SECONDS = (0.5, 1.0, 2.0, 5.0)
log = structlog.get_logger("worker.validate")


@dataclass(frozen=True)
class Dataset:
    """What is to be checked: where the files lie by now, and how the job wants them read."""

    training: str
    validation: str | None
    spec: JobSpec


@dataclass(frozen=True)
class Pins:
    """The objects a job will use, as they were when they were read."""

    training: list[Pinned]
    validation: list[Pinned]


class Abandoned(Exception):
    """The check was told to stop."""


async def validate(database: Database, settings: Settings, claim: Claim) -> None:
    """Check the dataset of a claimed job and move the job on.

    Raises:
        FenceLost: Somebody else owns the job now.
    """
    stop = threading.Event()
    try:
        dataset = await insist(lambda: _begin(database, claim))
        if dataset is None:
            return
        outcome = await _until_answered(database, settings, claim, dataset, stop)
        await insist(lambda: _settle(database, claim, outcome))
    finally:
        stop.set()


async def _begin(database: Database, claim: Claim) -> Dataset | None:
    """What is to be checked; None if the job was settled instead."""
    async with database.transaction() as db:
        job = await lifecycle.lock(db, claim.job_id, fence=claim.fence)
        if await _settled(db, job, claim):
            return None
        if claim.previous is not None:
            message = "The worker that was checking the files is gone; another one checks them."
            if await deaths.record(db, job, message):
                await lifecycle.failed(db, job, deaths.crash_loop(), fence=claim.fence)
                return None
        try:
            training = await _locate(db, job, job.training_file, "training_file")
            validation = job.validation_file and await _locate(db, job, job.validation_file, "validation_file")
        except StepError as problem:
            await lifecycle.failed(db, job, problem.as_error(), fence=claim.fence)
            return None
        return Dataset(training, validation or None, JobSpec.model_validate(job.spec))


async def _settled(db: AsyncSession, job: Job, claim: Claim) -> bool:
    """Whether the job needs no check: it moved on (by a commit whose answer was lost), or it is to be cancelled now."""
    if job.status != Status.VALIDATING:
        return True
    if job.cancel_requested_at is not None:
        await lifecycle.cancelled(db, job, fence=claim.fence)
        return True
    return False


async def _locate(db: AsyncSession, job: Job, named: str, param: str) -> str:
    """The S3 address of `file-…` or of an address.

    Raises:
        StepError: `file_not_found`: the file was deleted since.
    """
    if not named.startswith("file-"):
        return named
    file = await db.get(File, named)
    if file is None or file.project_id != job.project_id:
        raise StepError("file_not_found", f"There is no file {named}.", param=param)
    return file.uri


async def _until_answered(
    database: Database, settings: Settings, claim: Claim, dataset: Dataset, stop: threading.Event
) -> Pins | StepError | None:
    """The check's result; tried again while S3 is away or while the object is being replaced. None once it is cancelled."""
    turn = 0
    while True:
        work = asyncio.ensure_future(asyncio.to_thread(examine, settings, dataset, stop))
        if await _is_unwanted_before(database, claim, work):
            return None
        outcome = work.result()
        if not isinstance(outcome, StepError) or outcome.code.name not in ("s3_unavailable", "object_changed"):
            return outcome
        log.warning("s3_away", job=claim.job_id, error=outcome.message)
        rest = asyncio.ensure_future(asyncio.sleep(WAIT_SECONDS[min(turn, len(WAIT_SECONDS) - 1)]))
        if await _is_unwanted_before(database, claim, rest):
            return None
        turn += 1


async def _is_unwanted_before(database: Database, claim: Claim, work: asyncio.Future[Any]) -> bool:
    """Wait for `work`, and ask every second whether the job is still wanted; if not, `work` is broken off."""
    while not (await asyncio.wait({work}, timeout=1.0))[0]:
        if await insist(lambda: _is_unwanted(database, claim)):
            work.cancel()
            return True
    return False


async def _is_unwanted(database: Database, claim: Claim) -> bool:
    async with database.transaction() as db:
        asked = select(Job.fence, Job.cancel_requested_at).where(Job.id == claim.job_id)
        fence, at = (await db.execute(asked)).one()
        return at is not None or fence != claim.fence


async def _settle(database: Database, claim: Claim, outcome: Pins | StepError | None) -> None:
    async with database.transaction() as db:
        job = await lifecycle.lock(db, claim.job_id, fence=claim.fence)
        if await _settled(db, job, claim) or outcome is None:
            return
        if isinstance(outcome, StepError):
            await lifecycle.failed(db, job, outcome.as_error(), fence=claim.fence)
            return
        job.training_objects = [row.model_dump(mode="json") for row in outcome.training]
        job.validation_objects = [row.model_dump(mode="json") for row in outcome.validation]
        await lifecycle.queued(db, job, fence=claim.fence)
        if job.pause_requested_at is not None:
            await lifecycle.paused(db, job, fence=claim.fence)


def examine(settings: Settings, dataset: Dataset, stop: threading.Event) -> Pins | StepError:
    """Pin and read the dataset. Blocking.

    Returns:
        The objects, or what is wrong.
    """
    try:
        s3 = connect(settings)
        training = objects.pin(s3, dataset.training, "training_file")
        _read(s3, settings, dataset, training, stop, "training_file", MIN_EXAMPLES)
        if dataset.validation is None:
            return Pins(training, [])
        validation = objects.pin(s3, dataset.validation, "validation_file")
        _read(s3, settings, dataset, validation, stop, "validation_file", 1)
        return Pins(training, validation)
    except StepError as problem:
        return problem


def _read(
    s3: S3Client,
    settings: Settings,
    dataset: Dataset,
    pins: list[Pinned],
    stop: threading.Event,
    param: str,
    least: int,
) -> None:
    """Read the rows of all objects, up to `validate_bytes` together.

    Raises:
        StepError: The dataset cannot be used, or S3 is away.
    """
    left, total = settings.validate_bytes, 0
    complete = True
    for pinned in pins:
        report = check(_watched(s3, pinned, param, stop), dataset.spec.data, max_bytes=left)
        report.require(pinned.uri, param=param, minimum=least if len(pins) == 1 else 0)
        total, complete = total + report.n_examples, complete and report.complete
        left -= pinned.size or 0
        if left <= 0:
            return
    if complete and total < least:
        raise too_few(
            dataset.training if param == "training_file" else str(dataset.validation), total, param=param, minimum=least
        )


def _watched(s3: S3Client, pinned: Pinned, param: str, stop: threading.Event) -> Iterator[bytes]:
    for chunk in objects.stream(s3, pinned, param):
        if stop.is_set():
            raise Abandoned
        yield chunk
