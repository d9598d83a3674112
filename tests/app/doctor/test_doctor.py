"""What a doctor finds, says and mends: each disagreement made on purpose, looked at, repaired, and looked at again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from app.auth import Caller
from app.doctor.finding import Patient, Report
from app.doctor.visit import examine, visit
from app.errors import NotFound
from app.files.storage import connect
from app.housekeeping import objects
from app.inference.resolve import find_model
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.models import AdapterVersion, Checkpoint, File, Run, WebhookDelivery, new_id
from app.nextflow import command
from app.worker.settle import keep, read_product
from tests.app.doctor.upload import result
from tests.app.worker.services import BUCKET, World, environment

pytestmark = pytest.mark.db

FAR = "clock_timestamp() + interval '9 days'"


@pytest_asyncio.fixture
async def clinic(stored: World) -> World:
    """The world with nothing on S3 below output and uploads, and no count of sweeps."""
    client = connect(stored.settings)
    for prefix in ("model/", "files/"):
        for key in await asyncio.to_thread(stored.keys, prefix):
            client.delete_object(Bucket=BUCKET, Key=key)
    return stored


async def look(world: World, **more: Any) -> Report:
    """Without the surroundings, which a test of their own looks at."""
    return Report([], await examine(Patient(world.settings, world.database, **more)))


async def mended(world: World, *problems: str, **more: Any) -> Report:
    """What a repair finds: it must say so before, without touching anything, and find nothing more afterwards."""
    before = await look(world, **more)
    repaired = await look(world, repair=True, **more)
    for report in (before, repaired):
        assert sorted(found.problem for found in report.findings) == sorted(found.problem for found in before.findings)
        assert len(report.findings) == len(problems), report.lines()
        for problem in problems:
            assert any(problem in found.line() for found in report.findings), report.lines()
    assert (before.well, repaired.well) == (False, True), repaired.lines()
    assert [found for found in (await look(world, **more)).findings if found.repaired is None] == []
    return repaired


async def do(world: World, statement: str, **values: Any) -> None:
    async with world.database.transaction() as db:
        await db.execute(text(statement), values)


async def succeed(world: World, job_id: str, tmp_path: Path) -> str:
    """Let a job succeed with a real result on S3; its prefix."""
    prefix = await asyncio.to_thread(result, world, await world.get(job_id), tmp_path / f"of-{job_id}")
    product = await asyncio.to_thread(read_product, connect(world.settings), prefix, job_id)
    async with world.database.transaction() as db:
        job = await lifecycle.lock(db, job_id)
        job.status = Status.RUNNING
        await keep(db, job, product)
        await lifecycle.succeeded(db, job, fence=job.fence)
    return prefix


def remove(world: World, uri: str) -> None:
    connect(world.settings).delete_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"))


async def test_a_healthy_service_has_nothing_wrong(clinic: World, tmp_path: Path) -> None:
    project = await clinic.project()
    await succeed(clinic, await clinic.job(project, suffix="fine"), tmp_path)
    await clinic.job(project)
    report = await visit(Patient(clinic.settings, clinic.database, repair=True))
    assert report.findings == []
    assert {sign.part for sign in report.signs} >= {"database", "schema", "s3", "nextflow", "java", "disk"}
    assert report.lines()[-1] == "Nothing is wrong."


async def test_a_surrounding_that_is_away_is_named_with_the_way_out(world: World) -> None:
    report = await visit(Patient(world.settings, world.database))
    said = {sign.part: sign for sign in report.signs}
    assert not said["s3"].well
    assert "AWS_ENDPOINT_URL_S3" in said["s3"].said
    assert (said["database"].well, report.well) == (True, False)


RULES = (
    ("update jobs set last_seq = 0", "numbered beyond"),
    (f"update jobs set worker_id = 'w', lease_until = {FAR}", "far future"),
    (
        f"""insert into workers (id, host, pid, boot_id, pid_namespace, capabilities, heartbeat_at)
        values ('w', 'h', 1, 'b', 'n', '{{}}', {FAR})""",
        "seen in the future",
    ),
    (
        f"""insert into train_leases (job_id, train_key, holder, lease_until)
        select id, 'k', 'h', {FAR} from jobs""",
        "far future",
    ),
    (
        f"""insert into webhook_deliveries (id, project_id, event_id, type, url, host, body, next_attempt_at)
        select 'd', project_id, 'e', 't', 'u', 'h:1', '', {FAR} from jobs""",
        "far future",
    ),
    (f"insert into webhook_hosts (project_id, host, open_until) select id, 'h:1', {FAR} from projects", "far future"),
)  # fmt: skip


@pytest.mark.parametrize(("statement", "problem"), RULES)
async def test_rows_at_odds_with_the_clock_or_each_other_are_mended(
    clinic: World, statement: str, problem: str
) -> None:
    await clinic.job(await clinic.project())
    await do(clinic, statement)
    await mended(clinic, problem)


async def test_a_lease_from_the_future_is_taken_from_its_owner(clinic: World) -> None:
    job_id = await clinic.job(await clinic.project())
    await do(clinic, f"update jobs set worker_id = 'w', lease_until = {FAR}")
    await look(clinic, repair=True)
    job = await clinic.get(job_id)
    assert (job.worker_id, job.fence) == (None, 1)


async def test_a_version_without_its_objects_is_unservable_until_they_are_back(clinic: World, tmp_path: Path) -> None:
    project = await clinic.project()
    job_id = await clinic.job(project, suffix="gone")
    prefix = await succeed(clinic, job_id, tmp_path)
    key = f"{prefix}adapter/adapter_model.safetensors".removeprefix(f"s3://{BUCKET}/")
    weights = connect(clinic.settings).get_object(Bucket=BUCKET, Key=key)["Body"].read()
    remove(clinic, f"{prefix}adapter/adapter_model.safetensors")
    await mended(clinic, "There is no object")
    model, caller = (await clinic.get(job_id)).fine_tuned_model, Caller(project, "default", "k", frozenset(), None)
    async with clinic.database.transaction() as db:
        for name in (model, "gone"):
            with pytest.raises(NotFound, match="cannot be served") as refused:
                await find_model(db, caller, str(name))
            assert refused.value.code == "model_unservable"
    assert (await clinic.messages(job_id))[-1].startswith("The model cannot be served")
    clinic.put(key, weights)
    await mended(clinic, "whole again")
    async with clinic.database.transaction() as db:
        assert (await find_model(db, caller, str(model))).adapter


async def test_changed_bytes_of_the_same_length_are_seen_unless_it_must_be_quick(clinic: World, tmp_path: Path) -> None:
    prefix = await succeed(clinic, await clinic.job(await clinic.project()), tmp_path)
    key = f"{prefix}adapter/adapter_config.json".removeprefix(f"s3://{BUCKET}/")
    size = connect(clinic.settings).head_object(Bucket=BUCKET, Key=key)["ContentLength"]
    clinic.put(key, b"x" * size)
    assert (await look(clinic, quick=True)).well
    assert "other bytes" in (await look(clinic)).findings[0].problem


async def test_a_manifest_that_is_another_one_is_seen(clinic: World, tmp_path: Path) -> None:
    prefix = await succeed(clinic, await clinic.job(await clinic.project()), tmp_path)
    clinic.put(f"{prefix}manifest.json".removeprefix(f"s3://{BUCKET}/"), b"{}")
    await mended(clinic, "is not the one that was registered")


async def test_a_file_without_its_object_is_an_error_until_it_is_back(clinic: World) -> None:
    project = await clinic.project()
    async with clinic.database.transaction() as db:
        db.add(File(
            id="file-1", project_id=project, filename="f", purpose="fine-tune", bytes=3, uri=f"s3://{BUCKET}/model/f",
            owned=False, status="processed",
        ))  # fmt: skip
    await mended(clinic, "not on S3 any more")
    (row,) = await clinic.rows(File)
    assert (row.status, row.status_details) == ("error", f"Its object is not on S3 any more: s3://{BUCKET}/model/f.")
    clinic.put("model/f", b"abc")
    await mended(clinic, "is back")
    (row,) = await clinic.rows(File)
    assert (row.status, row.status_details) == ("processed", None)


async def test_a_result_of_an_unknown_job_is_registered_again_from_its_manifest(clinic: World, tmp_path: Path) -> None:
    project = await clinic.project()
    first, second = await clinic.job(project, suffix="desk"), await clinic.job(project, suffix="desk")
    for job_id in (first, second):
        await succeed(clinic, job_id, tmp_path)
    known = [(row.model, row.base, row.manifest_sha256, row.version) for row in await clinic.rows(AdapterVersion)]
    was = await clinic.get(first)
    emptied = ("webhook_deliveries", "promotions", "adapter_versions", "adapters", "files", "checkpoints", "events")
    for table in (*emptied, "measurements", "jobs"):
        await do(clinic, f"delete from {table}")
    report = await mended(clinic, *["the database does not know it"] * 2)
    assert all("of the project default" in str(found.repaired) for found in report.findings)
    again = await clinic.rows(AdapterVersion)
    assert {(row.model, row.base["revision"], row.manifest_sha256) for row in again} == {
        (model, base["revision"], sha256) for model, base, sha256, _ in known
    }
    assert sorted(row.version for row in again) == [1, 2]
    job = await clinic.get(first)
    for name in ("status", "fine_tuned_model", "output", "trained_tokens", "training_file", "suffix", "spec", "model"):
        assert getattr(job, name) == getattr(was, name)
    assert {row.step_number for row in await clinic.rows(Checkpoint)} == {5, 10}
    assert len(job.result_files) == 1
    assert await clinic.rows(WebhookDelivery) == [], "whoever asked was called then"


async def test_with_several_projects_the_owner_of_a_result_must_be_named(clinic: World, tmp_path: Path) -> None:
    project = await clinic.project()
    job_id = await clinic.job(project)
    await succeed(clinic, job_id, tmp_path)
    for table in ("adapter_versions", "files", "checkpoints", "events", "jobs"):
        await do(clinic, f"delete from {table}")
    other = await clinic.project("other")
    report = await look(clinic, repair=True)
    assert [(found.way_out, found.repaired) for found in report.findings] == [
        ("llamaflow doctor --repair --project NAME", None)
    ]
    await mended(clinic, "does not know it", project="other")
    assert (await clinic.get(job_id)).project_id == other


async def test_half_a_result_of_an_unknown_job_is_told_and_left(clinic: World) -> None:
    await clinic.project()
    clinic.put(f"model/{new_id('ftjob-')}/adapter/adapter_config.json", b"{}")
    report = await look(clinic, repair=True)
    assert ["no whole result" in found.problem for found in report.findings] == [True]
    assert len(await asyncio.to_thread(clinic.keys, "model/")) == 1


@pytest.mark.parametrize("status", ["validating_files", "queued", "running", "paused"])
async def test_a_job_whose_result_is_whole_has_succeeded(clinic: World, tmp_path: Path, status: str) -> None:
    job_id = await clinic.job(await clinic.project(), callback="https://example.com/hook")
    await asyncio.to_thread(result, clinic, await clinic.get(job_id), tmp_path / "made")
    paused = ", paused_at = clock_timestamp()" if status == "paused" else ""
    await do(clinic, f"update jobs set status = :status{paused}", status=status)
    await mended(clinic, f"it is {status}, and its whole result is at")
    job = await clinic.get(job_id)
    assert (job.status, bool(job.fine_tuned_model)) == ("succeeded", True)
    assert len(await clinic.rows(WebhookDelivery)) == 1


async def test_a_job_that_a_worker_holds_is_left_to_it(clinic: World, tmp_path: Path) -> None:
    job_id = await clinic.job(await clinic.project())
    await asyncio.to_thread(result, clinic, await clinic.get(job_id), tmp_path / "made")
    held = "update jobs set status = 'running', worker_id = 'w', lease_until = clock_timestamp() + interval '1 minute'"
    await do(clinic, held)
    assert (await look(clinic, repair=True)).findings == []


async def test_what_a_cancelled_job_left_on_s3_is_removed(clinic: World, tmp_path: Path) -> None:
    job_id = await clinic.job(await clinic.project())
    await asyncio.to_thread(result, clinic, await clinic.get(job_id), tmp_path / "made")
    await do(clinic, "update jobs set status = 'cancelled', finished_at = clock_timestamp()")
    await mended(clinic, "was cancelled")
    assert await asyncio.to_thread(clinic.keys, "model/") == []


async def test_a_callback_that_was_never_owed_is_owed(clinic: World) -> None:
    job_id = await clinic.job(await clinic.project(), callback="https://example.com/hook")
    await do(clinic, "update jobs set status = 'cancelled', finished_at = clock_timestamp()")
    await mended(clinic, "never owed")
    assert [(row.job_id, row.type) for row in await clinic.rows(WebhookDelivery)] == [
        (job_id, "fine_tuning.job.cancelled")
    ]


async def test_a_job_whose_runs_folder_is_gone_starts_its_next_run(clinic: World) -> None:
    project = await clinic.project()
    job_id = await clinic.job(project, status="running")
    run = Run(
        id=new_id("run_"), project_id=project, job_id=job_id, attempt=1, fence=0, profile="local", session_uuid="s",
        folder=str(clinic.settings.runs / job_id / "run-1"), host=clinic.settings.hostname,
    )  # fmt: skip
    async with clinic.database.transaction() as db:
        db.add(run)
    await mended(clinic, "is gone")
    job = await clinic.get(job_id)
    assert (job.status, job.fence, (await clinic.rows(Run))[0].finished_at is not None) == ("running", 1, True)


async def test_what_runs_of_an_ended_or_unknown_job_is_ended_and_strangers_are_left(
    clinic: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job_id = await clinic.job(await clinic.project())
    await do(clinic, "update jobs set status = 'cancelled', finished_at = clock_timestamp()")
    unknown, elsewhere = new_id("ftjob-"), tmp_path_factory.mktemp("elsewhere")

    def run(label: str, folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-c", "import time; time.sleep(120)"]
        return subprocess.Popen(argv, cwd=folder, env={command.LABEL: label})

    ours = [run(name, clinic.settings.runs / name / "work") for name in (job_id, unknown)]
    stranger = run(new_id("ftjob-"), elsewhere)
    try:
        report = await look(clinic)
        assert sorted(found.subject for found in report.findings) == sorted([f"job {job_id}", f"job {unknown}"])
        assert [process.poll() for process in ours] == [None, None]
        assert (await look(clinic, repair=True)).well
        assert [process.wait(10) for process in ours] == [-15, -15]
        assert stranger.poll() is None
    finally:
        for process in (*ours, stranger):
            process.kill()
            process.wait()


async def test_a_database_older_than_its_objects_learns_of_uploads_and_goes_on_counting(clinic: World) -> None:
    project = await clinic.project()
    name = new_id("file-")
    clinic.put(f"files/{project}/{name}", b"rows")
    objects.write_count(clinic.settings, 10**6)
    await mended(clinic, "counts fewer sweeps", "the database does not know it")
    (row,) = await clinic.rows(File)
    assert (row.id, row.project_id, row.bytes, row.owned, row.status) == (name, project, 4, True, "processed")
    async with clinic.database.transaction() as db:
        assert await objects.counted_here(db) == 10**6
        await db.execute(text("select setval('sweeps', 1, false)"))


async def test_the_command_prints_plain_lines_or_json_and_its_status_tells(clinic: World) -> None:
    await clinic.job(await clinic.project())
    await do(clinic, "update jobs set last_seq = 0")

    def doctor(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(Path(sys.executable).with_name("llamaflow")), "doctor", *words]
        return subprocess.run(argv, env=environment(clinic.settings), capture_output=True, text=True, check=False)

    plain = await asyncio.to_thread(doctor)
    assert (plain.returncode, plain.stdout.splitlines()[-1]) == (1, "1 wrong."), plain.stdout + plain.stderr
    machine = await asyncio.to_thread(doctor, "--repair", "--json")
    told = json.loads(machine.stdout)
    assert (machine.returncode, told["ok"], len(told["findings"])) == (0, True, 1)
