"""POST /v1/fine_tuning/jobs/estimate: a job is checked as if it were created, the beginning of its dataset is read, and nothing is kept.

Reads S3 in threads of its own, with bounds on rows, bytes and time. No tokenizer and no chat template runs here: both come
with a model and are not to be trusted in the process that serves everybody.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.db import Database
from app.errors import Unavailable
from app.files import service as files
from app.files.storage import Storage, connect
from app.jobs import checks, measured
from app.jobs.schemas import JobCreate
from app.settings import Settings
from app.worker import objects
from finetune.config import JobSpec
from finetune.estimate import lengths, reckon, sample, shape
from finetune.estimate.reckon import Known
from finetune.estimate.result import Estimate
from finetune.exit_codes import StepError
from finetune.model.fetch import at_hand
from finetune.steps import ModelSource

THREADS = 4
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="estimate")


@dataclass(frozen=True)
class Asked:
    """What is read outside of any transaction: the job, where its files lie, its base, and what is known."""

    spec: JobSpec
    training: str
    validation: str | None
    known: Known
    base: ModelSource


async def estimate(
    database: Database,
    storage: Storage,
    settings: Settings,
    caller: Caller,
    body: JobCreate,
    creating: asyncio.Semaphore,
) -> Estimate:
    """What a job would take.

    Args:
        creating: Held while the job is checked inside a transaction, as when one is created.
    Raises:
        BadRequest: The job would be refused at once.
        Unavailable: `s3_unavailable`; `estimate_timeout`: S3 took too long.
    """
    async with creating, database.transaction() as db:
        checked = await checks.at_once(db, caller, body, storage, settings, created=False)
        places = [await _place(db, caller, body.training_file, "training_file")]
        if body.validation_file is not None:
            places.append(await _place(db, caller, body.validation_file, "validation_file"))
        known = await measured.known(db, caller.project_id, body, checked.base.id, None, settings)
    asked = Asked(body, places[0], places[1] if len(places) > 1 else None, known, checked.base)
    found = await _within(settings.estimate_seconds, partial(read, settings, asked))
    return found.model_copy(update={"warnings": [*checked.warnings, *found.warnings]})


async def _within(seconds: float, work: partial[Estimate]) -> Estimate:
    """Do blocking work in a thread; told to stop when its time is over, or when nobody waits for it any more."""
    stop = threading.Event()
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(_threads, work, stop)
    except TimeoutError:
        raise Unavailable(
            f"The dataset could not be read within {seconds:g} s (LLAMAFLOW_ESTIMATE_SECONDS). Try again in a moment.",
            code="estimate_timeout",
            retry_after=10,
        ) from None
    finally:
        stop.set()


def read(settings: Settings, asked: Asked, stop: threading.Event) -> Estimate:
    """Read the beginning of the dataset and reckon. Blocking.

    Args:
        settings: How S3 is reached.
        asked: What is asked.
        stop: Set when nobody waits for it any more.
    Raises:
        Unavailable: `s3_unavailable`.
    """
    spec, folder = asked.spec, at_hand(asked.base, settings.cache)
    known = replace(asked.known, shape=(shape.of_folder(folder) if folder else None) or asked.known.shape)
    ratios = tuple(run.bytes_a_token for run in known.runs if run.base == known.base and run.bytes_a_token)
    problem: StepError | None = None
    try:
        reckon.require(spec, folder)
    except StepError as refused:
        problem = refused
    try:
        train = _sample(settings, asked.training, "training_file", spec, stop)
        held = asked.validation and _sample(settings, asked.validation, "validation_file", spec, stop)
    except StepError as failed:
        if failed.code.name == "s3_unavailable":
            raise Unavailable(failed.message, code="s3_unavailable", retry_after=5) from failed
        train, held, problem = sample.Sample(), None, failed
    validation = (held, lengths.by_bytes(held, spec.data, ratios)) if held else None
    found = reckon.estimate(spec, train, lengths.by_bytes(train, spec.data, ratios), validation, known)
    return found if problem is None else found.model_copy(update={"error": reckon.as_problem(problem)})


def _sample(settings: Settings, uri: str, param: str, spec: JobSpec, stop: threading.Event) -> sample.Sample:
    s3 = connect(settings)
    parts = [
        sample.Part(pin.uri, pin.size or 0, partial(objects.stream, s3, pin, param))
        for pin in objects.pin(s3, uri, param)
    ]
    return sample.take(parts, spec.data, stopped=stop.is_set)


async def _place(db: AsyncSession, caller: Caller, named: str, param: str) -> str:
    """The S3 address of `file-…` or of an address."""
    return (await files.dataset(db, caller, named, param=param)).uri if named.startswith("file-") else named
