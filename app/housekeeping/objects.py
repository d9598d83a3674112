"""What nobody knows on S3: uploads that never became files, unfinished multipart uploads. And the count of sweeps.

The count stands in the database and beside the uploads. A database that counts less than S3 was restored from a backup: it
does not know of later uploads, and nothing is removed before `llamaflow doctor --repair` has made it known to them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.files.storage import connect
from app.housekeeping.house import House, counted
from app.jobs import lifecycle
from app.models import FINAL, SWEEPS, File, Job
from app.settings import Settings
from finetune.exit_codes import StepError
from finetune.s3 import errors, split

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

UPLOAD = re.compile(
    r"(?P<project>[A-Za-z0-9_]+)/(?P<file>file-[A-Za-z0-9]{24}|upload_[A-Za-z0-9]{24}/part_[A-Za-z0-9]{24})"
    r"(-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?"
)
"""The key of an upload or of a part of one, below the prefix; with a UUID behind it is what a killed server was writing."""
JOB = re.compile(r"/(ftjob-[A-Za-z0-9]{24})/")
BATCH = 1000


def marker(settings: Settings) -> str:
    """Where on S3 the count of sweeps is kept."""
    return f"{settings.files_prefix.rstrip('/')}/.sweeps"


async def count_sweep(house: House) -> list[str]:
    """Count this sweep in the database and on S3, unless the database is older than S3."""
    if house.dry_run or await is_restored(house):
        return []
    async with house.database.transaction() as db:
        number = (await db.execute(select(SWEEPS.next_value()))).scalar_one()
    await asyncio.to_thread(write_count, house.settings, number)
    return []


async def is_restored(house: House) -> bool:
    """Whether the database counts fewer sweeps than S3: it was restored from a backup."""
    async with house.database.transaction() as db:
        here = await counted_here(db)
    return here < await asyncio.to_thread(counted_there, house.settings)


async def counted_here(db: AsyncSession) -> int:
    """Sweeps by the database's count."""
    return int(
        (await db.execute(text("select case when is_called then last_value else 0 end from sweeps"))).scalar_one()
    )


def counted_there(settings: Settings) -> int:
    """Sweeps by the count on S3; 0 where there is none. Blocking."""
    uri = marker(settings)
    bucket, key = split(uri)
    try:
        with errors(uri):
            said = connect(settings).get_object(Bucket=bucket, Key=key)["Body"].read(32)
    except StepError as problem:
        if problem.code.name == "file_not_found":
            return 0
        raise
    return int(said) if said.isdigit() else 0


def write_count(settings: Settings, number: int) -> None:
    """Keep the count on S3. Blocking."""
    uri = marker(settings)
    bucket, key = split(uri)
    with errors(uri):
        connect(settings).put_object(Bucket=bucket, Key=key, Body=b"%d" % number)


async def orphans(house: House) -> list[str]:
    """Remove uploads that never became a file: the service died between the last byte and the row."""
    if await is_restored(house):
        return ["The database is older than the objects on S3: run `llamaflow doctor --repair`. No upload was removed."]
    before = await _now(house) - timedelta(seconds=house.settings.keep_orphans)
    unknown = [key for key, _, _ in await _unknown(house, before)]
    if not house.dry_run:
        await asyncio.to_thread(_delete, connect(house.settings), split(house.settings.files_prefix)[0], unknown)
    what = f"{counted(len(unknown), 'upload')} that never became a file"
    return [house.did(f"Removed {what}.", f"remove {what}.")] if unknown else []


async def unknown_uploads(house: House) -> list[tuple[str, str, str]]:
    """Whole uploads that no file stands for, of any age: address, project, file id."""
    bucket, _ = split(house.settings.files_prefix)
    found = await _unknown(house, await _now(house) + timedelta(days=1))
    return [
        (f"s3://{bucket}/{key}", project, file)
        for key, project, file in found
        if key.endswith(file) and file.startswith("file-")
    ]


async def _unknown(house: House, before: datetime) -> list[tuple[str, str, str]]:
    """Uploads from before then that no file stands for, and half-written ones: key, project, file id."""
    s3, found = connect(house.settings), []
    for batch in await asyncio.to_thread(_uploads, s3, house.settings, before):
        known = await _known(house, {file for key, _, file in batch if key.endswith(file)})
        found += [row for row in batch if row[2] not in known or not row[0].endswith(row[2])]
    return found


async def unfinished(house: House) -> list[str]:
    """Throw away multipart uploads that nobody will finish: of uploads to the service, and of jobs that have ended."""
    before = await _now(house) - timedelta(seconds=house.settings.keep_orphans)
    aborted, lines = 0, []
    for prefix in await _prefixes(house):
        try:
            aborted += await _throw_away(house, prefix, before)
        except StepError as problem:  # somebody's bucket that is gone must not keep the others' from being looked at
            lines.append(f"Unfinished uploads below {prefix} were not looked for: {problem.message}")
    what = counted(aborted, "unfinished upload")
    return lines + ([house.did(f"Threw away {what}.", f"throw away {what}.")] if aborted else [])


async def _throw_away(house: House, prefix: str, before: datetime) -> int:
    s3, own = connect(house.settings), prefix == house.settings.files_prefix
    found = await asyncio.to_thread(_multiparts, s3, prefix, before)
    jobs = {key: job[1] for _, key, _ in found if (job := JOB.search(f"/{key}"))}
    ended = await _ended(house, set(jobs.values()))
    dead = [row for row in found if own or jobs.get(row[1]) in ended]
    for row in dead if not house.dry_run else []:
        await asyncio.to_thread(_abort, s3, *row)
    return len(dead)


async def _now(house: House) -> datetime:
    async with house.database.transaction() as db:
        now: datetime = await lifecycle.now(db)
        return now


def _uploads(s3: S3Client, settings: Settings, before: datetime) -> list[list[tuple[str, str, str]]]:
    """Uploads from before then, in batches: key, project, file id."""
    bucket, prefix = split(settings.files_prefix.rstrip("/") + "/")
    batches = []
    with errors(settings.files_prefix):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            keys = [row["Key"] for row in page.get("Contents", []) if row["LastModified"] < before]
            named = [(key, UPLOAD.fullmatch(key.removeprefix(prefix))) for key in keys]
            batches.append([(key, match["project"], match["file"]) for key, match in named if match])
    return [batch for batch in batches if batch]


async def _known(house: House, names: set[str]) -> set[str]:
    async with house.database.transaction() as db:
        return set((await db.execute(select(File.id).where(File.id.in_(names)))).scalars())


def _delete(s3: S3Client, bucket: str, keys: list[str]) -> None:
    for key in keys:
        with errors(f"s3://{bucket}/{key}"):
            s3.delete_object(Bucket=bucket, Key=key)


async def _prefixes(house: House) -> list[str]:
    """Where multipart uploads of ours may lie: uploads, and the output of jobs."""
    path = Job.spec["output"]["path"].astext
    async with house.database.transaction() as db:
        outputs = (await db.execute(select(path).distinct().where(path.is_not(None)).limit(BATCH))).scalars().all()
    return [house.settings.files_prefix, *sorted(set(outputs) - {house.settings.files_prefix})]


def _multiparts(s3: S3Client, prefix: str, before: datetime) -> list[tuple[str, str, str]]:
    """Unfinished uploads below a prefix that were begun before then: bucket, key, upload id."""
    bucket, below = split(prefix)
    with errors(prefix):
        pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=below)
        rows: Iterator[Any] = (row for page in pages for row in page.get("Uploads", []))
        return [(bucket, row["Key"], row["UploadId"]) for row in rows if row["Initiated"] < before]


async def _ended(house: House, names: set[str]) -> set[str | None]:
    async with house.database.transaction() as db:
        ended = select(Job.id).where(Job.id.in_(names), Job.status.in_(FINAL))
        return set((await db.execute(ended)).scalars())


def _abort(s3: S3Client, bucket: str, key: str, upload: str) -> None:
    with errors(f"s3://{bucket}/{key}"):
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
