"""Results and files that the database knows, against what lies on S3: there, and the bytes that were recorded.

A version whose objects are gone or changed is marked unservable, and asking for it says so; should they come back, the mark is
taken away again. A file whose object is gone gets the status `error`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from sqlalchemy import select, update

from app.adapters import pointer
from app.doctor.finding import Finding, Patient
from app.events import service as events
from app.files.storage import connect
from app.jobs import lifecycle
from app.models import Adapter, AdapterVersion, File
from app.worker import objects
from finetune.exit_codes import StepError
from finetune.model.peft_folder import vouched
from finetune.s3 import CHUNK, errors, head, split

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 16
GONE = "Its object is not on S3 any more"
BEFORE = "It was marked so before."


async def versions(patient: Patient) -> list[Finding]:
    """Versions whose manifest or files are not on S3 as they were recorded."""
    async with patient.database.transaction() as db:
        rows = list((await db.execute(select(AdapterVersion).order_by(AdapterVersion.created_at))).scalars())
    s3 = connect(patient.settings)
    problems = await asyncio.to_thread(_each, rows, lambda row: problem_of(s3, row, quick=patient.quick))
    findings = []
    for row, problem in zip(rows, problems, strict=True):
        if problem == row.unservable:
            findings += [Finding(f"model {row.model}", problem, repaired=BEFORE)] if problem else []
            continue
        done = None
        if patient.repair:
            await _mark(patient, row, problem)
            done = "It is marked unservable." if problem else "It is servable again."
        findings.append(Finding(f"model {row.model}", problem or "its objects are whole again.", repaired=done))
    return findings


def problem_of(s3: S3Client, version: AdapterVersion, *, quick: bool) -> str | None:
    """What is wrong with a version's objects, as a sentence; None if nothing is. Blocking.

    Args:
        quick: Compare sizes, and do not read the files.
    Raises:
        StepError: S3 is away, or refuses.
    """
    prefix = version.uri.rstrip("/") + "/"
    try:
        content = objects.read(s3, f"{prefix}manifest.json")
        if hashlib.sha256(content).hexdigest() != version.manifest_sha256:
            return f"{prefix}manifest.json is not the one that was registered."
        for file in vouched(content).files:
            if head(s3, prefix + file.path).size != file.size or not (
                quick or _sha256(s3, prefix + file.path) == file.sha256
            ):
                return f"{prefix}{file.path} has other bytes than its manifest says."
    except ValidationError:
        return f"{prefix}manifest.json is no manifest."
    except StepError as problem:
        if problem.code.name == "file_not_found":
            return problem.message
        raise
    return None


def _sha256(s3: S3Client, uri: str) -> str:
    bucket, key = split(uri)
    digest = hashlib.sha256()
    with errors(uri), closing(s3.get_object(Bucket=bucket, Key=key)["Body"]) as body:
        for chunk in body.iter_chunks(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


async def _mark(patient: Patient, version: AdapterVersion, problem: str | None) -> None:
    async with patient.database.transaction() as db:
        changed = update(AdapterVersion).where(AdapterVersion.id == version.id).values(unservable=problem)
        await db.execute(changed)
        if version.job_id is not None:
            job = await lifecycle.lock(db, version.job_id)
            told = f"The model cannot be served: {problem}" if problem else "The model can be served again."
            await events.record(db, job, told, level="error" if problem else "info")


async def pointers(patient: Patient) -> list[Finding]:
    """Pointers on S3 that say something else than what an adapter's name answers with. One that was never written is written."""
    async with patient.database.transaction() as db:
        adapters = (await db.execute(select(Adapter).order_by(Adapter.project_id, Adapter.name))).scalars().all()
        wanted = [(row, await pointer.content(db, row)) for row in adapters]
    findings = []
    for row, content in wanted:
        uri = pointer.address(patient.settings, row.project_id, row.name)
        found = await asyncio.to_thread(pointer.read, patient.settings, uri)
        if found == content or (not found and not patient.repair):
            continue
        if patient.repair:
            await pointer.write(patient.database, patient.settings, row.project_id, row.name)
        done = "It is written anew." if patient.repair else None
        if found:
            findings.append(Finding(f"adapter {row.name}", f"{uri} names another version.", repaired=done))
    return findings


async def files(patient: Patient) -> list[Finding]:
    """Files whose object is gone or of another size, and those that were marked so and are back."""
    async with patient.database.transaction() as db:
        rows = list((await db.execute(select(File).order_by(File.created_at))).scalars())
    s3 = connect(patient.settings)
    problems = await asyncio.to_thread(_each, rows, lambda row: _problem_of_file(s3, row))
    findings = []
    for row, problem in zip(rows, problems, strict=True):
        marked = row.status == "error" and (row.status_details or "").startswith(GONE)
        if problem is None and not marked:
            continue
        if problem is not None and marked:
            findings.append(Finding(f"file {row.id}", problem, repaired=BEFORE))
            continue
        done = None
        if patient.repair:
            values = (
                {"status": "error", "status_details": problem}
                if problem
                else {"status": "processed", "status_details": None}
            )
            async with patient.database.transaction() as db:
                await db.execute(update(File).where(File.id == row.id).values(**values))
            done = "Its status is error." if problem else "Its status is processed."
        findings.append(Finding(f"file {row.id}", problem or "its object is back.", repaired=done))
    return findings


def _problem_of_file(s3: S3Client, file: File) -> str | None:
    try:
        found = head(s3, file.uri)
    except StepError as problem:
        if problem.code.name == "file_not_found":
            return f"{GONE}: {file.uri}."
        raise
    return None if found.size == file.bytes else f"{GONE}: {file.uri} has {found.size:,} bytes, not {file.bytes:,}."


def _each(rows: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """`work` on every row, several at a time, in order."""
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="doctor") as threads:
        return list(threads.map(work, rows))
