"""GET …/logs as it is served: paged, followed to the job's end, without secrets, and from S3 once the folder was cleared."""

# ruff: noqa: ASYNC212  the API answers in a thread of its own

from __future__ import annotations

import asyncio
import shutil
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from openai import OpenAI
from sqlalchemy import select

from app import client as clients
from app.cli import main
from app.client import Client
from app.db import Database
from app.housekeeping import archive
from app.jobs import lifecycle
from app.jobs import service as jobs
from app.jobs.log_routes import STAGES
from app.models import Run, Stage
from app.settings import PROJECT_ROOT, get_settings
from tests.app.conftest import Service, until
from tests.app.jobs.factory import create, move, step

pytestmark = pytest.mark.db


async def running(service: Service, client: OpenAI, db: Database, text: str) -> tuple[str, Path]:
    """A job in FINE_TUNE whose log says `text`, and where that log lies."""
    job_id = create(client)
    await move(db, job_id, "running")
    home = service.settings.runs / job_id
    log = home / "work" / "ab" / "cd" / ".command.log"
    log.parent.mkdir(parents=True)
    log.write_text(text, encoding="utf-8")
    (home / "run-1").mkdir()
    (home / "run-1" / "stdout.log").write_text("N E X T F L O W\n", encoding="utf-8")
    async with db.transaction() as session:
        (await session.execute(select(Stage).where(Stage.job_id == job_id))).scalar_one().workdir = str(log.parent)
        (await session.execute(select(Run).where(Run.job_id == job_id))).scalar_one().folder = str(home / "run-1")
    return job_id, log


def address(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/logs"


async def test_a_secret_of_the_service_is_in_no_log(
    service: Service, http: httpx.Client, client: OpenAI, db: Database
) -> None:
    assert service.settings.s3_secret_key is not None
    secret = service.settings.s3_secret_key.get_secret_value()
    job_id, _ = await running(service, client, db, f"key {secret} and lf-{'a' * 43}\n")
    assert "== FINE_TUNE: run 1, attempt 1, running\nkey [redacted] and [redacted]\n" in http.get(address(job_id)).text


async def test_a_long_log_is_read_page_by_page(
    service: Service, http: httpx.Client, client: OpenAI, db: Database
) -> None:
    text = "".join(f"step {n}\n" for n in range(200_000))
    job_id, _ = await running(service, client, db, text)
    got, at = "", "0"
    while True:
        answer = http.get(address(job_id), params={"stage": "FINE_TUNE", "offset": at})
        got += answer.text
        if answer.headers["x-next-offset"] == at:
            break
        at = answer.headers["x-next-offset"]
    assert got == text


@pytest.mark.parametrize("params", [{"offset": 0}, {"offset": 0, "stage": "X", "tail": 1}, {"offset": -1}])
async def test_an_offset_is_of_one_stage(http: httpx.Client, client: OpenAI, params: dict[str, str]) -> None:
    answer = http.get(address(create(client)), params=params)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "offset")


async def test_it_is_followed_until_the_job_has_ended(service: Service, client: OpenAI, db: Database) -> None:
    job_id, log = await running(service, client, db, "step 1\nstep 2\n")
    got: list[str] = []

    def follow() -> None:
        params = {"follow": True, "tail": 1, "stage": "fine_tune"}
        with service.http() as http, http.stream("GET", address(job_id), params=params) as response:
            for text in response.iter_text():
                got.append(text)  # noqa: PERF402  as it comes

    following = asyncio.create_task(asyncio.to_thread(follow))
    await until(lambda: got)
    with log.open("a", encoding="utf-8") as file:
        file.write("step 3\nlast")
    await step(db, job_id, "succeeded")
    await asyncio.wait_for(following, 30)
    assert "".join(got) == "== FINE_TUNE: run 1, attempt 1\nstep 2\nstep 3\nlast"


async def test_a_stage_that_has_not_begun_may_be_followed(http: httpx.Client, client: OpenAI, db: Database) -> None:
    job_id = create(client)
    await move(db, job_id, "failed")
    assert http.get(address(job_id), params={"follow": True, "stage": "EVALUATE"}).text == ""
    assert http.get(address(job_id), params={"follow": True, "stage": "EVALUTE"}).status_code == 404


def test_the_stages_are_those_of_the_pipeline() -> None:
    script = (PROJECT_ROOT / "pipeline" / "main.nf").read_text(encoding="utf-8")
    assert [name for name in STAGES if f"include {{ {name} }}" not in script] == []


async def test_logs_come_from_s3_once_the_folder_was_cleared(
    service: Service, http: httpx.Client, client: OpenAI, db: Database
) -> None:
    job_id, _ = await running(service, client, db, "".join(f"step {n}\n" for n in range(1, 9)))
    await step(db, job_id, "succeeded")
    before = http.get(address(job_id)).text
    home = service.settings.runs / job_id
    await _archive(service, db, job_id)
    shutil.rmtree(home)
    assert "N E X T F L O W" in before
    assert http.get(address(job_id)).text == before
    assert http.get(address(job_id), params={"stage": "FINE_TUNE", "tail": 2}).text == "step 7\nstep 8\n"
    page = http.get(address(job_id), params={"stage": "FINE_TUNE", "offset": 49})
    assert (page.text, page.headers["x-next-offset"]) == ("step 8\n", "56")
    assert http.get(address(job_id), params={"follow": True, "tail": 1, "stage": "FINE_TUNE"}).text.endswith("step 8\n")


async def _archive(service: Service, db: Database, job_id: str) -> None:
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        runs, stages = await jobs.runs_of(session, job), await jobs.stages(session, job)
        home = service.settings.runs / job_id
        job.logs_uri = await asyncio.to_thread(archive.store, service.settings, job, home, runs, stages)


async def test_the_command_line_follows_events_and_logs(
    service: Service, client: OpenAI, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAFLOW_URL", service.url)
    monkeypatch.setenv("LLAMAFLOW_API_KEY", "lf-alpha")
    get_settings.cache_clear()
    try:
        job_id, _ = await running(service, client, db, "step 1\n")
        watching = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, main, ["jobs", "watch", job_id]))
        await step(db, job_id, "succeeded")
        watched = await watching
        said = await asyncio.to_thread(CliRunner().invoke, main, ["jobs", "logs", job_id, "--follow", "--tail", "1"])
    finally:
        get_settings.cache_clear()
    assert watched.exit_code == 0, watched.output
    assert "Created fine-tuning job" in watched.output
    assert "The job has successfully completed" in watched.output
    assert "== FINE_TUNE: run 1, attempt 1\nstep 1\n" in said.output


async def test_who_watches_waits_for_a_service_that_is_away_and_is_told_when_it_refuses(
    service: Service, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "RESUME_SECONDS", 0.05)
    monkeypatch.setattr(clients, "PATIENCE_SECONDS", 0.3)
    with (
        closing(Client("http://127.0.0.1:9", "lf-alpha")) as away,
        pytest.raises(clients.ServiceError, match="not answer"),
    ):
        await asyncio.to_thread(lambda: list(away.events("ftjob-x")))
    job_id = create(client)
    with closing(Client(service.url, "lf-beta")) as other, pytest.raises(clients.ServiceError, match="no fine-tuning"):
        await asyncio.to_thread(lambda: list(other.events(job_id)))


async def test_a_job_is_304_for_its_own_tag_in_any_form(http: httpx.Client, client: OpenAI) -> None:
    path = f"/v1/fine_tuning/jobs/{create(client)}"
    tag = http.get(path).headers["etag"]
    asked = {given: http.get(path, headers={"if-none-match": given}) for given in (tag, f"W/{tag}", f'"x", {tag}', "*")}
    assert {given: (answer.status_code, answer.content) for given, answer in asked.items()} == dict.fromkeys(
        asked, (304, b"")
    )
    assert http.get(path, headers={"if-none-match": '"x"'}).status_code == 200
