"""What else a sweep clears: rows past their time, orphans on S3, the cache; and that sweeps at once get on with each other."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app.embedded import beside, folder, s3
from app.files.storage import connect
from app.housekeeping import objects
from app.housekeeping.house import House
from app.housekeeping.sweep import sweep
from app.models import (
    DeliveryAttempt,
    KeptResponse,
    RunLines,
    RunToken,
    SigningSecret,
    WebhookDelivery,
    WebhookEndpoint,
    Worker,
    new_id,
)
from app.settings import Settings
from finetune.model import cache
from tests.app.worker.services import BUCKET, World

pytestmark = pytest.mark.db

UPLOAD = "file-abcdefghijklmnopqrstuvwx"
PART = "upload_abcdefghijklmnopqrstuvwx/part_abcdefghijklmnopqrstuvwx"
HALF = "0c0ffee0-1111-4222-8333-444444444444"


async def swept(world: World, **more: Any) -> list[str]:
    return await sweep(world.settings, world.database, **more)


async def age(world: World, table: str, column: str, days: int, where: str = "true") -> None:
    async with world.database.transaction() as db:
        ago = f"clock_timestamp() - interval '{days} days'"
        await db.execute(text(f"update {table} set {column} = {ago} where {where}"))


async def ids(world: World, table: str) -> set[str]:
    async with world.database.transaction() as db:
        return set((await db.execute(text(f"select id from {table}"))).scalars())


async def test_workers_gone_for_long_are_forgotten(stored: World) -> None:
    async with stored.database.transaction() as db:
        for name in ("old", "new"):
            db.add(Worker(id=name, host="h", pid=1, boot_id="b", pid_namespace="n", capabilities={}))
    await age(stored, "workers", "heartbeat_at", 9, "id = 'old'")
    assert await swept(stored, dry_run=True) == ["Would forget 1 worker unseen for long."]
    assert await swept(stored) == ["Forgot 1 worker unseen for long."]
    assert await ids(stored, "workers") == {"new"}


async def test_an_idempotency_key_is_free_again_after_a_day(stored: World) -> None:
    project = await stored.project()
    old, new = await stored.job(project), await stored.job(project)
    async with stored.database.transaction() as db:
        await db.execute(text("update jobs set idempotency_key = id"))
    await age(stored, "jobs", "created_at", 2, f"id = '{old}'")
    assert await swept(stored) == ["Forgot 1 idempotency key."]
    assert ((await stored.get(old)).idempotency_key, (await stored.get(new)).idempotency_key) == (None, new)


async def test_expired_secrets_and_tokens_go_and_valid_ones_stay(stored: World) -> None:
    project = await stored.project()
    job_id = await stored.job(project)
    async with stored.database.transaction() as db:
        db.add(WebhookEndpoint(id="whe", project_id=project, name="e", url="u", event_types=[]))
        await db.flush()
        db.add(SigningSecret(id="old", project_id=project, endpoint_id="whe", secret="whsec_old"))
        await db.execute(
            text(
                "insert into runs (id, project_id, job_id, attempt, fence, profile, session_uuid, folder, host) "
                "values ('run', :project, :job, 1, 0, 'local', 's', '/f', 'h')"
            ),
            {"project": project, "job": job_id},
        )
        now = (await db.execute(text("select clock_timestamp()"))).scalar_one()
        for name in ("old", "new"):
            db.add(RunToken(id=name, project_id=project, job_id=job_id, run_id="run", hash=name, expires_at=now))
    await age(stored, "signing_secrets", "expires_at", 2, "id = 'old'")
    await age(stored, "run_tokens", "expires_at", 2, "id = 'old'")
    assert set(await swept(stored)) == {"Forgot 1 signing secret.", "Forgot 1 run token."}
    assert await ids(stored, "run_tokens") == {"new"}
    assert "old" not in await ids(stored, "signing_secrets")


async def test_a_response_goes_when_its_time_is_over(stored: World) -> None:
    project = await stored.project()
    soon = datetime.now(UTC) + timedelta(hours=1)
    async with stored.database.transaction() as db:
        for name in ("old", "new"):
            db.add(KeptResponse(id=name, project_id=project, messages=[], response={}, expires_at=soon))
    await age(stored, "responses", "expires_at", 2, "id = 'old'")
    assert await swept(stored) == ["Forgot 1 kept response."]
    assert await ids(stored, "responses") == {"new"}


async def test_what_a_training_told_goes_with_its_job(stored: World) -> None:
    project = await stored.project()
    old, new = await stored.job(project), await stored.job(project)
    async with stored.database.transaction() as db:
        for job_id in (old, new):
            db.add(RunLines(job_id=job_id, start=0, until=3, content=b"{}\n"))
        ended = (
            "update jobs set status = 'cancelled', finished_at = clock_timestamp() - interval '8 days' where id = :id"
        )
        await db.execute(text(ended), {"id": old})
    assert await swept(stored) == ["Forgot 1 piece of a training's progress."]
    assert {row.job_id for row in await stored.rows(RunLines)} == {new}


async def test_attempts_of_settled_deliveries_go_after_a_month(stored: World) -> None:
    project = await stored.project()
    async with stored.database.transaction() as db:
        for status in ("delivered", "pending"):
            made = WebhookDelivery(
                id=status, project_id=project, event_id=new_id("evt_"), type="test", url="u", host="h:80", body=b"",
                status=status,
            )  # fmt: skip
            db.add(made)
            await db.flush()
            db.add(DeliveryAttempt(id=f"of-{status}", delivery_id=status, attempt=1, latency_ms=1))
    await age(stored, "delivery_attempts", "created_at", 31)
    assert await swept(stored) == ["Forgot 1 delivery attempt."]
    assert await ids(stored, "delivery_attempts") == {"of-pending"}


async def test_an_upload_that_never_became_a_file_goes_and_nothing_else(stored: World) -> None:
    project = await stored.project()
    gone = (UPLOAD, f"{UPLOAD[:-1]}y-{HALF}", PART, f"{PART}-{HALF}")
    keys = [f"files/{project}/{name}" for name in (*gone, "notes.txt", f"logs/x/{UPLOAD}")]
    known = f"files/{project}/{UPLOAD[:-1]}z"
    for key in (*keys, known):
        stored.put(key, b"x")
    async with stored.database.transaction() as db:
        row = "insert into files (id, project_id, filename, purpose, bytes, uri, owned, status)"
        values = "values (:id, :project, 'f', 'fine-tune', 1, 'u', true, 'processed')"
        await db.execute(text(f"{row} {values}"), {"id": known.rpartition("/")[2], "project": project})
    assert await swept(stored) == [], "they are young: their rows may be on their way"
    stored.settings = stored.settings.model_copy(update={"keep_orphans": -60.0})
    assert await swept(stored) == ["Removed 4 uploads that never became a file."]
    assert set(stored.keys(f"files/{project}/")) == {*keys[4:], known}


async def test_a_database_older_than_its_objects_removes_none_of_them(stored: World) -> None:
    project = await stored.project()
    stored.put(f"files/{project}/{UPLOAD}", b"x")
    stored.settings = stored.settings.model_copy(update={"keep_orphans": -60.0})
    objects.write_count(stored.settings, 10**9)
    try:
        assert any("doctor --repair" in line for line in await swept(stored))
        assert stored.keys(f"files/{project}/") == [f"files/{project}/{UPLOAD}"]
        assert await objects.is_restored(House(stored.settings, stored.database))
    finally:
        objects.write_count(stored.settings, 0)


async def test_unfinished_multipart_uploads_of_ended_jobs_and_of_the_service_are_thrown_away(stored: World) -> None:
    project = await stored.project()
    ended, goes_on = await stored.job(project), await stored.job(project)
    async with stored.database.transaction() as db:
        statement = "update jobs set status = 'cancelled', finished_at = clock_timestamp() where id = :id"
        await db.execute(text(statement), {"id": ended})
    client = connect(stored.settings)
    theirs = {f"files/{project}/{UPLOAD}", f"model/{ended}/adapter/x", f"model/{goes_on}/adapter/x", "other/x"}
    for key in theirs:
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    stored.settings = stored.settings.model_copy(update={"keep_orphans": -60.0})
    assert "Threw away 2 unfinished uploads." in await swept(stored)
    left = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert {row["Key"] for row in left} & theirs == {f"model/{goes_on}/adapter/x", "other/x"}
    for row in left:
        client.abort_multipart_upload(Bucket=BUCKET, Key=row["Key"], UploadId=row["UploadId"])


async def test_the_cache_is_kept_below_its_size_and_open_jobs_keep_their_base(stored: World) -> None:
    project = await stored.project()
    revisions = {name: name[0] * 40 for name in ("abandoned", "busy", "ended")}
    jobs = {name: await stored.job(project) for name in ("busy", "ended")}
    for name, revision in revisions.items():
        base = stored.settings.cache / "models" / revision
        base.mkdir(parents=True)
        (base / "model.safetensors").write_bytes(bytes(1000))
        os.utime(base, (time.time() - 9 * 3600,) * 2)
        if name in jobs:
            link = stored.settings.runs / jobs[name] / "work" / "ab" / "cd" / "base"
            link.parent.mkdir(parents=True)
            cache.link(base, link)
            cache.hold(stored.settings.cache, base, link)
    async with stored.database.transaction() as db:
        statement = "update jobs set status = 'cancelled', finished_at = clock_timestamp() where id = :id"
        await db.execute(text(statement), {"id": jobs["ended"]})
    stored.settings = stored.settings.model_copy(update={"cache_bytes": 500})
    assert await swept(stored) == ["Removed 2 things of the cache (2.0 kB), longest unused."]
    assert [path.name for path in (stored.settings.cache / "models").iterdir()] == [revisions["busy"]]


async def test_sweeps_at_once_do_each_thing_once(stored: World) -> None:
    async with stored.database.transaction() as db:
        for number in range(50):
            db.add(Worker(id=f"w{number}", host="h", pid=1, boot_id="b", pid_namespace="n", capabilities={}))
    await age(stored, "workers", "heartbeat_at", 9)
    said = await asyncio.gather(*(swept(stored) for _ in range(4)))
    assert sorted(said) == [[], [], [], ["Forgot 50 workers unseen for long."]]


async def test_while_s3_is_away_the_rest_is_swept(world: World) -> None:
    async with world.database.transaction() as db:
        db.add(Worker(id="old", host="h", pid=1, boot_id="b", pid_namespace="n", capabilities={}))
    await age(world, "workers", "heartbeat_at", 9)
    said = await swept(world)
    assert "Forgot 1 worker unseen for long." in said
    assert any(line.startswith("objects: not done now: S3 did not answer") for line in said)


def test_a_command_finds_what_the_running_service_has_started(tmp_path: Any) -> None:
    plain = Settings(state_dir=tmp_path)
    assert beside.completed(plain) == plain
    folder.write_secret(tmp_path / "up.json", '{"database_url": "postgresql://found"}')
    s3._write_env(tmp_path, "http://127.0.0.1:1", "key", "secret")
    found = beside.completed(plain)
    assert found.database_url == SecretStr("postgresql://found")
    assert (found.s3_endpoint, found.s3_secret_key) == ("http://127.0.0.1:1", SecretStr("secret"))
    other = plain.model_copy(update={"database_url": SecretStr("postgresql://own")})
    assert beside.completed(other).database_url == SecretStr("postgresql://own")
