"""What the service stands on: database, schema, S3, Nextflow, Java, disk. One sentence each."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from app.doctor.finding import Patient, Sign
from app.files.storage import connect
from app.models import new_id
from app.nextflow import install, jars
from app.settings import Settings
from finetune.exit_codes import StepError
from finetune.s3 import errors, split

LEAST_FREE_BYTES = 2 << 30
LEAST_FREE_SHARE = 0.02
SECONDS = 10.0


async def look(patient: Patient) -> list[Sign]:
    """Look at every part."""
    s3 = asyncio.to_thread(_s3, patient.settings)
    rest = asyncio.to_thread(lambda: [*_nextflow(patient.settings), *_disk(patient.settings)])
    database, storage, others = await asyncio.gather(_database(patient), s3, rest)
    return [*database, storage, *others]


async def _database(patient: Patient) -> list[Sign]:
    head = ScriptDirectory.from_config(migrations.config("")).get_current_head()
    try:
        async with asyncio.timeout(SECONDS), patient.database.transaction() as db:
            there = (await db.execute(text("select to_regclass('alembic_version')"))).scalar_one()
            found = (await db.execute(text("select version_num from alembic_version"))).scalar() if there else None
    except (SQLAlchemyError, OSError, TimeoutError) as problem:
        why = f"It does not answer ({type(problem).__name__}). Start it, or correct LLAMAFLOW_DATABASE_URL."
        return [Sign("database", False, why)]
    said = f"At {found}." if found == head else f"At {found or 'nothing'}, not {head}: run `llamaflow migrate`."
    return [Sign("database", True, "It answers."), Sign("schema", found == head, said)]


def _s3(settings: Settings) -> Sign:
    """Write, read and remove one small object beside the uploads."""
    uri = f"{settings.files_prefix.rstrip('/')}/.doctor-{new_id('')}"
    bucket, key = split(uri)
    try:
        client = connect(settings)
        with errors(uri):
            client.put_object(Bucket=bucket, Key=key, Body=b"well")
            well = client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"well"
            client.delete_object(Bucket=bucket, Key=key)
    except StepError as problem:
        return Sign("s3", False, f"{problem.message} Check AWS_ENDPOINT_URL_S3 and the keys.")
    return Sign("s3", well, f"The bucket {bucket} can be written and read." if well else f"{uri} came back changed.")


def _nextflow(settings: Settings) -> list[Sign]:
    if settings.nextflow is not None:
        well = os.access(settings.nextflow, os.X_OK)
        return [
            Sign("nextflow", well, f"{settings.nextflow}" + ("." if well else " cannot be run: LLAMAFLOW_NEXTFLOW."))
        ]
    lacking = jars.missing(settings.tools / "jars", jars.read_lock())
    if lacking:
        way_out = "`make setup`, or the next start of a worker, fetches them."
        return [Sign("nextflow", False, f"{len(lacking)} of its jars are missing below {settings.tools}. {way_out}")]
    try:
        java = install.java_version()
    except jars.InstallError as problem:
        return [Sign("java", False, f"{problem} Run `make setup`.")]
    return [Sign("nextflow", True, f"{install.NEXTFLOW_VERSION} is installed."), Sign("java", True, f"{java}.")]


def _disk(settings: Settings) -> list[Sign]:
    """Free space where runs and the cache grow, each disk once."""
    places = {"LLAMAFLOW_RUNS_DIR": settings.runs, "LLAMAFLOW_CACHE_DIR": settings.cache}
    signs: dict[int, Sign] = {}
    for name, folder in places.items():
        there = _nearest(folder)
        usage = shutil.disk_usage(there)
        well = usage.free >= min(LEAST_FREE_BYTES, usage.total * LEAST_FREE_SHARE)
        said = f"{usage.free / 1e9:,.1f} GB free at {there}." + ("" if well else f" Free some, or move {name}.")
        signs.setdefault(there.stat().st_dev, Sign("disk", well, said))
    return list(signs.values())


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
