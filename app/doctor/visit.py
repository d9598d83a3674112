"""One visit: the surroundings first; when database and S3 answer, everything else, in the order in which repairs build on each other."""

from __future__ import annotations

import asyncio

from sqlalchemy.exc import SQLAlchemyError

from app.db import Database
from app.doctor import processes, restored, results, rows, surroundings
from app.doctor.finding import Finding, Patient, Report
from app.errors import ApiError
from app.housekeeping.sweep import LOCK
from app.settings import Settings
from finetune.exit_codes import StepError

PATIENCE_SECONDS = 60.0
CHECKS = (
    rows.by_rules,
    processes.left_running,
    restored.results,
    processes.lost_runs,
    results.versions,
    results.pointers,
    results.files,
    restored.uploads,
    rows.callbacks,
)
NEEDED = ("database", "schema", "s3")


async def visit(patient: Patient) -> Report:
    """Look at everything, and mend what can be mended if that was asked for. No sweep of the housekeeping runs meanwhile."""
    signs = await surroundings.look(patient)
    ready = all(sign.well for sign in signs if sign.part in NEEDED)
    return Report(signs, await examine(patient) if ready else [])


async def examine(patient: Patient) -> list[Finding]:
    """What database, S3, folders and processes say of each other."""
    findings: list[Finding] = []
    async with patient.database.alone(LOCK, PATIENCE_SECONDS) as ours:
        if not ours:
            wait = "Wait until it has ended, and ask again."
            return [Finding("housekeeping", "a sweep is under way.", wait)]
        for check in CHECKS:
            try:
                findings += await check(patient)
            except (StepError, ApiError, SQLAlchemyError, OSError) as problem:
                name = f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
                findings.append(Finding(name, f"not looked at: {problem}", "Mend that, and ask again."))
    return findings


def main(settings: Settings, *, repair: bool, quick: bool, project: str | None) -> Report:
    """A visit from the command line."""

    async def once() -> Report:
        database = Database.from_settings(settings, pool_size=4)
        try:
            return await visit(Patient(settings, database, repair, quick, project))
        finally:
            await database.close()

    return asyncio.run(once())
