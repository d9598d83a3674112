"""What runs against what the database says: runs of jobs that have ended or are unknown, jobs whose run is gone.

Only processes that work below this service's runs folder are looked at: another service on the machine keeps its own.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import func

from app.doctor.finding import Finding, Patient
from app.events import service as events
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.models import FINAL, Job, Run
from app.nextflow import command, process
from app.worker import settle
from app.worker.launch import label, last_run

GOING_SECONDS = 3.0
"""What belongs to a run that has just ended may take so long to go."""
REAP_SECONDS = 10.0
LOST = "The folder of this job's run is gone; it is started again."


async def left_running(patient: Patient) -> list[Finding]:
    """End what runs of jobs that have ended, are paused, or are unknown to the database."""
    alive = await asyncio.to_thread(process.labelled, command.LABEL, patient.settings.runs)
    async with patient.database.transaction() as db:
        rows = await db.execute(select(Job.id, Job.status).where(Job.id.in_(list(alive))))
        status = {job_id: str(found) for job_id, found in rows}
    suspects = {job_id for job_id in alive if status.get(job_id) in (None, *FINAL, Status.PAUSED)}
    stay = await asyncio.gather(*(_stays(job_id) for job_id in suspects))
    findings = []
    for job_id in [job_id for job_id, stays in zip(suspects, stay, strict=True) if stays]:
        known, members = status.get(job_id), alive[job_id]
        shown = f"is {known}" if known else "is not known to the database"
        problem = f"it {shown}, and {len(members)} of its processes run (pid {members[0].pid})."
        if patient.repair:
            await asyncio.to_thread(process.reap, label(job_id), REAP_SECONDS)
        done = "They were ended." if patient.repair else None
        findings.append(Finding(f"job {job_id}", problem, repaired=done))
    return findings


async def _stays(job_id: str) -> bool:
    return not await asyncio.to_thread(process.wait_members, label(job_id), GOING_SECONDS)


async def lost_runs(patient: Patient) -> list[Finding]:
    """Free jobs whose run was on this machine and whose folder is gone, so that a worker starts the next run."""
    async with patient.database.transaction() as db:
        runs = await _unheld(db, patient)
    findings = []
    for run in runs:
        if await asyncio.to_thread(Path(run.folder).is_dir):
            continue
        done = None
        if patient.repair and await _restart(patient, run):
            done = "It starts its next run as soon as a worker is free."
        findings.append(
            Finding(f"job {run.job_id}", f"it is running, and its run's folder {run.folder} is gone.", repaired=done)
        )
    return findings


async def _unheld(db: AsyncSession, patient: Patient) -> list[Run]:
    """The unfinished runs of this machine whose jobs no living worker holds."""
    free = Job.worker_id.is_(None) | (Job.lease_until < func.clock_timestamp())
    query = select(Run).join(Job, Job.id == Run.job_id).where(Job.status == Status.RUNNING, free)
    mine = query.where(Run.finished_at.is_(None), Run.host == patient.settings.hostname)
    return list((await db.execute(mine)).scalars())


async def _restart(patient: Patient, run: Run) -> bool:
    async with patient.database.transaction() as db:
        job = await lifecycle.lock(db, run.job_id)
        newest = await last_run(db, job.id)
        if job.status != Status.RUNNING or newest is None or newest.id != run.id:
            return False
        await settle.close(db, run, None)
        job.worker_id, job.lease_until, job.fence = None, None, job.fence + 1
        await events.record(db, job, LOST, level="warn")
        await lifecycle.wake(db, job.id)
        return True
