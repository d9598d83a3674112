"""`llamaflow import-openai` and `llamaflow recreate` against a server that replays OpenAI's documented shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result
from openai import OpenAI

from app.cli import main
from app.settings import get_settings
from tests.app.conftest import MODEL, Service
from tests.app.importing.hosted import BASE, KEY, RETRY_AFTER, ROWS, Hosted, job

pytestmark = pytest.mark.db

Typed = Callable[..., Result]


@pytest.fixture
def hosted() -> Iterator[Hosted]:
    made = Hosted()
    yield made
    made.close()


@pytest.fixture
def typed(service: Service, hosted: Hosted, monkeypatch: pytest.MonkeyPatch) -> Iterator[Typed]:
    """Types a command of llamaflow, with a key of OpenAI's in the environment."""
    given = {"LLAMAFLOW_URL": service.url, "LLAMAFLOW_API_KEY": "lf-alpha", "OPENAI_API_KEY": KEY}
    for name, value in (given | {"LLAMAFLOW_IMPORT_URL": hosted.url}).items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    yield lambda *words: CliRunner().invoke(main, list(words))
    get_settings.cache_clear()


@pytest.fixture(autouse=True)
def nothing_imported(service: Service) -> Iterator[None]:
    def forgotten() -> None:
        with service.http() as http:
            for row in http.get("/v1/imports?limit=100").json()["data"]:
                http.delete(f"/v1/imports/{row['id']}")

    forgotten()
    yield
    forgotten()


def told(result: Result) -> list[str]:
    """What the command said: lines of the API's log, which is served in this process, left out."""
    return [line for line in result.stdout.splitlines() if "] request " not in line]


def test_a_dry_run_lists_everything_and_writes_nothing(typed: Typed, hosted: Hosted, http: httpx.Client) -> None:
    said = typed("import-openai", "--dry-run")
    assert said.exit_code == 0, said.output
    assert [line.split()[0] for line in told(said)] == [
        "file-train", "file-gone", "file-result", "ftjob-one1", "ftjob-two2", "ftjob-thr3",
    ]  # fmt: skip
    assert http.get("/v1/imports").json()["data"] == []
    assert not [path for path in hosted.asked if path.endswith("/content")]


def test_files_jobs_events_and_hyperparameters_come_over_once(
    typed: Typed, hosted: Hosted, http: httpx.Client, client: OpenAI
) -> None:
    hosted.busy = {"/v1/files", "/v1/fine_tuning/jobs/ftjob-one1/events"}
    hosted.cut = {"file-train"}
    said = typed("import-openai")
    assert said.exit_code == 1, said.output
    assert "2 files, 3 jobs and 21 events brought; 0 were here already." in said.output
    assert "Not allowed to download" in said.output
    assert hosted.patience.keys() == {"/v1/files", "/v1/fine_tuning/jobs/ftjob-one1/events"}
    assert min(hosted.patience.values()) >= float(RETRY_AFTER)
    rows = {row["id"]: row for row in http.get("/v1/imports?limit=100").json()["data"]}
    assert client.files.content(rows["file-train"]["file_id"]).read() == ROWS
    assert rows["ftjob-one1"]["source"] == hosted.jobs[0]
    assert [row["id"] for row in rows["ftjob-one1"]["checkpoints"]] == ["ftckpt_0", "ftckpt_1", "ftckpt_2"]
    assert {name: row["complete"] for name, row in rows.items()} == {
        "file-train": True, "file-result": True, "file-gone": False, "ftjob-one1": True, "ftjob-two2": False, "ftjob-thr3": True,
    }  # fmt: skip
    events = http.get("/v1/imports/ftjob-one1/events?limit=100").json()["data"]
    assert events == hosted.events["ftjob-one1"]

    before = hosted.asked.copy()
    hosted.jobs[1] |= {"status": "succeeded", "fine_tuned_model": "ft:two"}
    again = typed("import-openai")
    assert "0 files, 1 jobs and 7 events brought; 4 were here already." in again.output
    asked = hosted.asked - before
    assert [path for path in asked if "one1" in path or "file-train" in path] == []
    assert http.get("/v1/imports/ftjob-two2").json()["source"]["fine_tuned_model"] == "ft:two"


def test_a_run_that_was_cut_after_an_upload_does_not_upload_again(
    typed: Typed, http: httpx.Client, client: OpenAI
) -> None:
    http.post("/v1/imports", json={"id": "file-train", "kind": "file", "object": {}})
    mine = client.files.create(file=("file-train.jsonl", ROWS), purpose="fine-tune")
    typed("import-openai", "--no-jobs")
    assert http.get("/v1/imports/file-train").json()["file_id"] == mine.id


def test_a_run_that_breaks_off_goes_on_where_it_was(typed: Typed, hosted: Hosted, http: httpx.Client) -> None:
    hosted.refused = {"/v1/fine_tuning/jobs/ftjob-thr3/events"}
    said = typed("import-openai", "--no-files")
    assert (said.exit_code, "insufficient permissions" in said.output) == (1, True)
    hosted.refused = set()
    before = hosted.asked.copy()
    assert typed("import-openai", "--no-files").exit_code == 0
    assert "/v1/fine_tuning/jobs/ftjob-one1/events" not in hosted.asked - before
    assert http.get("/v1/imports/ftjob-thr3").json()["complete"] is True


@pytest.mark.parametrize(("key", "said"), [(None, "set OPENAI_API_KEY"), ("sk-wrong", "Incorrect API key provided")])
def test_a_key_that_is_missing_or_wrong_is_said(
    typed: Typed, monkeypatch: pytest.MonkeyPatch, key: str | None, said: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY") if key is None else monkeypatch.setenv("OPENAI_API_KEY", key)
    shown = typed("import-openai")
    assert shown.exit_code == 1
    assert said in shown.output


def test_the_key_goes_to_openai_alone_and_is_stored_nowhere(
    typed: Typed, hosted: Hosted, service: Service, api_state: Path
) -> None:
    typed("import-openai")
    assert hosted.keys == {f"Bearer {KEY}"}
    assert service.settings.database_url is not None
    with psycopg.connect(service.settings.database_url.get_secret_value()) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        assert len(tables) > 20
        for (table,) in tables:
            found = connection.execute(f"select count(*) from {table} t where t::text like %s", [f"%{KEY}%"])  # type: ignore[arg-type]
            assert found.fetchone() == (0,), table


def test_jobs_are_made_again_on_mapped_bases_once(
    typed: Typed, http: httpx.Client, client: OpenAI, hosted: Hosted
) -> None:
    hosted.jobs.append(job("ftjob-fou4", training_file="file-gone"))
    hosted.events["ftjob-fou4"] = []
    typed("import-openai")
    said = typed("recreate", "--map", f"{BASE}={MODEL}", "--json")
    lines = {line["source"]: line for line in map(json.loads, told(said))}
    assert set(lines) == {"ftjob-one1", "ftjob-thr3", "ftjob-fou4"}
    assert "reinforcement is not offered" in lines["ftjob-thr3"]["why"]
    assert "file-gone was not brought" in lines["ftjob-fou4"]["why"]
    made = client.fine_tuning.jobs.retrieve(lines["ftjob-one1"]["job"])
    assert (made.model, made.seed, made.metadata) == (
        MODEL, 42, {"team": "a", "openai_job": "ftjob-one1", "openai_model": f"ft:{BASE}:acme:support:one1"},
    )  # fmt: skip
    assert made.method is not None
    assert made.method.to_dict()["supervised"] == {
        "hyperparameters": {"n_epochs": 2, "batch_size": 1, "learning_rate_multiplier": 1.8}
    }
    again = typed("recreate", "ftjob-one1", "--map", f"{BASE}={MODEL}")
    assert told(again) == [f"ft:{BASE}:acme:support:one1 → {made.id} ({made.status})"]
    assert again.exit_code == 0
    assert http.get("/v1/imports/ftjob-one1").json()["job_id"] == made.id


def test_what_cannot_be_mapped_is_said(typed: Typed) -> None:
    typed("import-openai")
    said = typed("recreate", f"ft:{BASE}:acme:support:one1", "ftjob-none")
    assert said.exit_code == 1
    assert "no such job was imported" in said.stdout
    assert f"The model '{BASE}' does not exist here" in said.stdout
    assert "is not MODEL=BASE" in typed("recreate", "--map", "x").output
