"""What must be true however a fault came, read from the tables, the folders, S3 and the machine's processes: one audit for all."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.jobs.service import output_prefix
from app.models import FINAL, AdapterVersion, Event, Job, Stage, WebhookDelivery
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from finetune.progress import read_lines
from finetune.steps import Manifest
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, until

SAID = {
    "succeeded": "The job has successfully completed",
    "failed": "The job failed: ",
    "cancelled": "Fine-tuning job cancelled",
}


async def audit(
    world: World,
    *jobs: str,
    receiver: Receiver | None = None,
    seconds: float = 60.0,
    fetches: int = 1,
    ends: Iterable[str] = ("succeeded",),
) -> dict[str, Job]:
    """Wait until every job is at rest, and check all that must be true of it then.

    Args:
        world: The surroundings.
        jobs: Which; none means all there are.
        receiver: Got the callbacks, if jobs have some.
        seconds: How long nothing may happen to a job before it counts as stuck.
        fetches: How often a dataset may have been downloaded to the end: once, but by a run that could not see what another had done.
        ends: How the jobs may have ended (`paused` counts as an end).
    Returns:
        The jobs by id.
    """
    named = list(jobs) or [job.id for job in await world.rows(Job)]
    found = {job_id: await at_rest(world, job_id, seconds) for job_id in named}
    assert {job.status for job in found.values()} <= set(ends), {
        job.id: (job.status, job.error) for job in found.values() if job.status not in tuple(ends)
    }
    left = await asyncio.to_thread(lambda: {job_id: process.members(label(job_id)) for job_id in named})
    assert not any(left.values()), f"left running: {left}"
    for job in found.values():
        await history(world, job)
        await callbacks(world, job, receiver)
        await versions(world, job)
        await stages(world, job, fetches)
        await asyncio.to_thread(stored_objects, world, job)
        await asyncio.to_thread(whole_files, world, job)
        lineage(folder.of(world.settings, job.id).train / "progress.jsonl", complete=job.status == "succeeded")
    return found


async def at_rest(world: World, job_id: str, seconds: float) -> Job:
    """The job once it is final or paused; while events come it may take as long as it likes."""
    seen = -1
    while True:
        job = await world.get(job_id)
        if job.status in (*FINAL, "paused"):
            return job
        if job.last_seq == seen:
            raise AssertionError(f"{job_id} is {job.status} and nothing happened to it for {seconds:.0f} s")
        seen = job.last_seq

        async def moved(seen: int = seen) -> bool:
            now = await world.get(job_id)
            return now.last_seq > seen or now.status in (*FINAL, "paused")

        try:
            await until(moved, seconds)
        except AssertionError:
            continue


async def history(world: World, job: Job) -> None:
    """The events are numbered without gaps; exactly one tells the end, and it is the last one."""
    events = await world.events(job.id)
    assert [event.seq for event in events] == list(range(1, job.last_seq + 1))
    ends = [event for event in events if event.message.startswith(tuple(SAID.values()))]
    if job.status in FINAL:
        assert [event.seq for event in ends] == [job.last_seq]
        assert ends[0].message.startswith(SAID[job.status])
    else:
        assert ends == []
    checkpoints = Counter(event.message for event in events if event.message.startswith("Checkpoint saved"))
    assert all(times <= _lives(events) for times in checkpoints.values()), checkpoints


def _lives(events: list[Event]) -> int:
    return sum(event.message.startswith(("Training started", "Training goes on")) for event in events)


async def callbacks(world: World, job: Job, receiver: Receiver | None) -> None:
    """Of a job that ended and has a callback URL, one delivery of the end, delivered, always under one id."""
    if job.callback_url is None or job.status not in FINAL:
        return
    kind = f"fine_tuning.job.{job.status}"
    owed = select(WebhookDelivery).where(WebhookDelivery.job_id == job.id, WebhookDelivery.endpoint_id.is_(None))

    async def rows() -> list[WebhookDelivery]:
        async with world.database.transaction() as db:
            return [row for row in (await db.execute(owed)).scalars() if row.type.rpartition(".")[2] in FINAL]

    async def delivered() -> bool:
        return all(row.status == "delivered" for row in await rows())

    await until(delivered, 60)
    (row,) = await rows()
    assert (row.type, row.url) == (kind, job.callback_url)
    if receiver is not None:
        told = [json.loads(got.body) | {"header": got.headers["webhook-id"]} for got in receiver.received]
        mine = [body for body in told if body["type"] == kind and body["data"]["id"] == job.id]
        assert mine, f"{job.id}: nobody was called back"
        assert {(body["id"], body["header"]) for body in mine} == {(row.event_id, row.event_id)}


async def versions(world: World, job: Job) -> None:
    """One adapter version of a job that succeeded, none of another."""
    mine = select(AdapterVersion).where(AdapterVersion.job_id == job.id)
    async with world.database.transaction() as db:
        found = [row.model for row in (await db.execute(mine)).scalars()]
    assert found == ([job.fine_tuned_model] if job.status == "succeeded" else [])


async def stages(world: World, job: Job, fetches: int) -> None:
    """The dataset was downloaded once; nothing of a job that ended is still said to run."""
    mine = select(Stage).where(Stage.job_id == job.id)
    async with world.database.transaction() as db:
        found = list((await db.execute(mine)).scalars())
    assert sum(row.process == "DOWNLOAD_DATA" and row.status == "succeeded" for row in found) <= fetches
    assert not [row.process for row in found if row.status in ("submitted", "running")]


def stored_objects(world: World, job: Job) -> None:
    """On S3 lies all of a result, or nothing."""
    prefix = output_prefix(job).removeprefix("s3://").partition("/")[2]
    if job.status == "cancelled":
        assert world.keys(prefix) == []
    if job.status == "succeeded":
        manifest = Manifest.model_validate_json(world.content(f"{prefix}manifest.json"))
        assert {f"{prefix}{file.path}" for file in manifest.files} <= set(world.keys(prefix))


def whole_files(world: World, job: Job) -> None:
    """Every JSON file of the job's folder can be read, keys of an ended job are gone, and an ended training left nothing half made."""
    home = folder.of(world.settings, job.id)
    for path in (*home.root.glob("*/*.json"), *home.root.glob("*.json"), *home.root.glob("train/*/*.json")):
        json.loads(path.read_text())
    if job.status in FINAL:
        assert list(home.root.glob("*credentials")) == []
    if job.status == "succeeded":
        assert list(home.train.glob(".making-*")) == []


def lineage(progress: Path, *, complete: bool) -> None:
    """Each optimiser step stands once in a lineage: a training goes on from a checkpoint it had saved, and repeats only from there.

    Args:
        progress: The trainer's progress.jsonl; need not be there.
        complete: Whether the last lineage must reach the end.
    """
    saved: set[int] = set()
    at = total = lives = 0
    for line in lines_of(progress):
        if line["event"] == "start":
            at, total = line.get("resumed_from") or 0, line["total_steps"]
            first = lives == 0  # a retried job's folder begins with a checkpoint of the old one
            lives += 1
            assert first or at in (saved or {0}), f"resumed from {at}, saved: {saved}"
        elif line["event"] == "step":
            assert line["step"] == at + 1, f"step {line['step']} follows {at}"
            at += 1
        elif line["event"] == "checkpoint":
            assert line["step"] == at
            saved.add(at)
    assert at == total or not complete


def lines_of(progress: Path) -> list[dict[str, Any]]:
    """Every line of a progress.jsonl."""
    found: list[dict[str, Any]] = []
    offset, before = 0, -1
    while offset != before:
        before = offset
        lines, offset = read_lines(progress, offset)
        found += lines
    return found
