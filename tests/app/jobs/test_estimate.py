"""POST …/jobs/estimate and what jobs keep of it: refused like a job, read within bounds, made of the project's own runs, and nothing created."""

# ruff: noqa: ASYNC212  the API answers in a thread of its own
from __future__ import annotations

import gzip
import json
import threading
from datetime import timedelta
from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import func, select

from app.db import Database
from app.errors import TooMany
from app.jobs import lifecycle, measured
from app.models import Event, Job, Measurement
from app.rates import Rates
from app.settings import Settings
from app.worker import validate
from finetune.config import JobSpec
from finetune.estimate import sample
from finetune.steps import Manifest
from tests.app.conftest import BUCKET, MODEL, Service, job_body, serving
from tests.app.jobs.factory import BASE, RESOLVED, create, move

pytestmark = pytest.mark.db

URL = "/v1/fine_tuning/jobs/estimate"
FACTS = {
    "parameters": 134_515_008, "units": 17_280, "vocabulary": 49_152, "n_examples": 12, "n_validation": 0, "n_epochs": 3,
    "batch_size": 4, "total_steps": 9, "tokens": 600, "trained_tokens": 60, "longest": 50, "bytes_a_token": 2.5,
}  # fmt: skip


def put(service: Service, name: str, content: bytes) -> str:
    service.s3.put_object(Bucket=BUCKET, Key=f"estimate/{name}", Body=content)
    return f"s3://{BUCKET}/estimate/{name}"


def rows(count: int, text: str = "Where is my parcel?") -> bytes:
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "On its way."}]
    return (json.dumps({"messages": turns}) + "\n").encode() * count


def manifest(job_id: str, **result: Any) -> Manifest:
    ended = {"status": "succeeded", "train_key": "k", "steps": 9, "seconds": 30.0, "cpu_seconds": 55.0, "threads": 2}
    return Manifest.model_validate({
        "job": job_id, "suffix": None, "created_at": 1, "base": BASE, "dataset": {"files": []}, "config": {},
        "resolved": RESOLVED, "result": ended | {"peak_memory_bytes": 1_500_000_000} | result, "evaluation": None,
        "code_version": "", "image": None, "files": [],
    })  # fmt: skip


async def remember(db: Database, job_id: str, project: str, **fields: Any) -> None:
    async with db.transaction() as session:
        made = {
            "job_id": job_id, "project_id": f"proj_{project}", "base": MODEL, "revision": "a" * 64, "parameters": 134_515_008,
            "technique": "lora", "method": "supervised", "profile": "local", "kind": "cpu", "device": "cpu, 2 threads",
            "tokens": 1000, "longest": 60, "steps": 9, "seconds": 10.0, "peak_memory_bytes": 900_000_000, "bytes_a_token": 3.0,
        }  # fmt: skip
        session.add(Measurement(**{**made, **fields}))


async def counts(db: Database) -> list[int]:
    async with db.transaction() as session:
        return [(await session.execute(select(func.count()).select_from(table))).scalar_one() for table in (Job, Event)]


async def test_an_estimate_counts_a_small_dataset_and_creates_nothing(http: httpx.Client, db: Database) -> None:
    before = await counts(db)
    answer = http.post(URL, json=job_body(hyperparameters={"n_epochs": 3, "batch_size": 4}))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["object"], found["model"], found["technique"]) == ("fine_tuning.job.estimate", MODEL, "lora")
    assert (found["examples"], found["total_steps"], found["n_epochs"]) == ([12, 12], [9, 9], [3, 3])
    assert found["basis"]["complete"]
    assert found["basis"]["rows_read"] == 12
    for name in ("tokens", "trained_tokens", "seconds", "peak_memory_bytes"):
        assert 0 <= found[name][0] < found[name][1], name
    assert found["error"] is None
    assert found["cost"] is None
    assert await counts(db) == before


def test_a_large_dataset_is_read_in_part_and_counted_as_a_range(http: httpx.Client, service: Service) -> None:
    uri = put(service, "large.jsonl", rows(60_000))
    found = http.post(URL, json=job_body(training_file=uri)).json()
    assert found["basis"]["rows_read"] == sample.ROWS
    assert found["examples"][0] < 60_000 < found["examples"][1] < 80_000
    assert found["total_steps"][0] <= 60_000 // 16 <= found["total_steps"][1]


def test_rows_that_cannot_be_used_are_told_as_the_job_would_tell_them(http: httpx.Client, service: Service) -> None:
    content = rows(12) + b'{"messages": "x"}\n' + b"no json\n" + rows(2)
    uri = put(service, "bad.jsonl", content)
    error = http.post(URL, json=job_body(training_file=uri)).json()["error"]
    spec = JobSpec(model=MODEL, training_file=uri)
    real = validate.examine(service.settings, validate.Dataset(uri, None, spec), threading.Event())
    assert not isinstance(real, validate.Pins)
    assert error == {**real.as_error(), "lines": [13, 14]}
    assert "line 13: " in error["message"]


@pytest.mark.parametrize(
    ("content", "code"), [(rows(3), "invalid_n_examples"), (b"", "invalid_file_format"), (b"PK\x03\x04zip", "invalid_file_format")]
)  # fmt: skip
def test_what_would_fail_the_job_is_an_answer_not_an_error(
    http: httpx.Client, service: Service, content: bytes, code: str
) -> None:
    answer = http.post(URL, json=job_body(training_file=put(service, "few.jsonl", content)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (200, code)
    assert answer.json()["total_steps"] is None


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"training_file": "s3://elsewhere/x.jsonl"}, "path_not_allowed", "training_file"),
        ({"training_file": "s3://llamaflow-data/files/proj_beta/file-x"}, "path_not_allowed", "training_file"),
        ({"training_file": "s3://llamaflow-data/estimate/none.jsonl"}, "file_not_found", "training_file"),
        ({"output": {"path": "s3://elsewhere/"}}, "path_not_allowed", "output.path"),
        ({"hyperparameters": {"n_epoch": 3}}, "unknown_parameter", "hyperparameters.n_epoch"),
        ({"callback_url": "http://10.0.0.1/"}, "callback_not_allowed", "callback_url"),
        ({"model": "/etc/passwd"}, "model_not_found", "model"),
    ],
)
def test_what_a_job_is_refused_for_an_estimate_is_refused_for(
    http: httpx.Client, fields: dict[str, Any], code: str, param: str
) -> None:
    answer = http.post(URL, json=job_body(**fields))
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


def test_scopes_and_files_are_those_of_jobs(http: httpx.Client, service: Service) -> None:
    with service.http("gamma") as reader, service.http("beta") as other:
        assert reader.post(URL, json=job_body()).status_code == 403
        upload = {"files": {"file": ("t.jsonl", rows(12))}, "data": {"purpose": "fine-tune"}}
        file = other.post("/v1/files", **upload).json()["id"]  # type: ignore[arg-type]
        assert other.post(URL, json=job_body(training_file=file)).json()["examples"] == [12, 12]
    error = http.post(URL, json=job_body(training_file=file)).json()["error"]
    assert (error["code"], error["param"]) == ("file_not_found", "training_file")


async def test_a_projects_own_runs_are_reckoned_with_and_no_others(
    http: httpx.Client, client: OpenAI, service: Service, db: Database
) -> None:
    await remember(db, create(client), "alpha", base="org/only-here", seconds=100.0, tokens=50_000)
    body = job_body(model="org/only-here", hyperparameters={"n_epochs": 1, "batch_size": 4})
    own = http.post(URL, json=body).json()
    assert (own["basis"]["tokens"], own["basis"]["seconds"], own["basis"]["memory"]) == ("runs", "runs", "runs")
    assert own["basis"]["runs"] == 1
    assert own["peak_memory_bytes"][0] < 900_000_000 < own["peak_memory_bytes"][1]
    with service.http("beta") as http_of_beta:
        other = http_of_beta.post(URL, json=body).json()
    assert (other["basis"]["seconds"], other["seconds"], other["basis"]["runs"]) == (None, None, 0)
    other_way = http.post(URL, json=body | {"technique": "full"}).json()
    assert other_way["basis"]["seconds"] != "runs"


def test_a_price_table_gives_a_cost(service: Service) -> None:
    priced = service.settings.model_copy(update={"prices": {"slurm/H100": 2.0, "*": 0.5}, "currency": "EUR"})
    with serving(priced) as url, Service(url, priced, service.s3).http() as http:
        plain = http.post(URL, json=job_body()).json()
        on_gpu = http.post(URL, json=job_body(execution={"profile": "slurm", "gpus": 2, "gpu_type": "H100"})).json()
    assert plain["currency"] == "EUR"
    assert plain["cost"][1] == pytest.approx(plain["seconds"][1] * 0.5 / 3600, rel=0.02)
    assert on_gpu["cost"][1] == pytest.approx(on_gpu["seconds"][1] * 4.0 / 3600, rel=0.02)
    assert on_gpu["device"] == {"kind": "gpu", "name": "H100", "count": 2, "memory": "vram"}


def test_a_time_limit_ends_the_reading_and_places_are_few(service: Service) -> None:
    hurried = service.settings.model_copy(update={"estimate_seconds": 1e-6})
    with serving(hurried) as url, Service(url, hurried, service.s3).http() as http:
        answer = http.post(URL, json=job_body())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "estimate_timeout")
    rates = Rates(Settings(max_estimates=1))
    with rates.estimating("key"), rates.estimating("other"), pytest.raises(TooMany) as refused, rates.estimating("key"):
        pass
    assert refused.value.code == "too_many_estimates"
    with rates.estimating("key"):
        pass


def test_others_are_answered_while_a_hostile_dataset_is_read(http: httpx.Client, service: Service) -> None:
    uri = put(service, "bomb.jsonl.gz", gzip.compress(b"\n" * (64 << 20)))

    def answered_meanwhile() -> int:
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(http.post(URL, json=job_body(training_file=uri))))
        asking.start()
        answered = 0
        with service.http("beta") as other:
            while not answers:
                answered += other.get("/healthz").status_code == 200
        asking.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["basis"]["rows_read"] == 0
        return answered

    assert any(answered_meanwhile() > 3 for _ in range(10)), "nobody was answered before it was read"


async def test_a_prepared_job_is_told_what_to_expect_and_keeps_how_far_off_it_was(
    http: httpx.Client, client: OpenAI, service: Service, db: Database
) -> None:
    priced = service.settings.model_copy(update={"prices": {"local": 3.6}, "currency": "EUR"})
    job_id = create(client, suffix="expected")
    await move(db, job_id, "running")
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        await measured.expect(session, job, {"facts": FACTS}, priced)
    shown = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["estimate"]
    assert (shown["total_steps"], shown["tokens"], shown["actual"]) == ([9, 9], [600, 600], None)
    assert shown["cost"][0] < shown["cost"][1]
    assert "bytes_a_token" not in shown
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        job.usage = {"gpu_seconds": 0.0, "cpu_seconds": 55.0, "estimated_cost": None}
        for _ in range(2):
            await measured.keep(session, job, manifest(job_id), "local", priced)
    job_shown = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    ended = job_shown["estimate"]
    assert ended["actual"] == {"seconds": 30.0, "peak_memory_bytes": 1_500_000_000, "total_steps": 9, "cost": 0.03}
    assert ended["error"]["total_steps"] == {"within": True, "ratio": 1.0}
    low, high = ended["seconds"]
    assert ended["error"]["seconds"]["within"] == (low <= 30.0 <= high)
    assert ended["error"]["seconds"]["ratio"] == pytest.approx(30.0 / (low * high) ** 0.5, rel=0.01)
    assert (job_shown["usage"]["estimated_cost"], job_shown["usage"]["currency"]) == (0.03, "EUR")
    said = [event["message"] for event in http.get(f"/v1/fine_tuning/jobs/{job_id}/events").json()["data"]]
    assert sum(message.startswith("Expected: ") for message in said) == 1
    assert (
        sum(message.startswith("The training took 30 s and 1.5 GB of memory; expected were ") for message in said) == 1
    )
    async with db.transaction() as session:
        kept = (await session.execute(select(Measurement).where(Measurement.job_id == job_id))).scalar_one()
    assert (kept.kind, kept.device, kept.tokens, kept.bytes_a_token) == ("cpu", "cpu, 2 threads", 1800, 2.5)


async def test_a_stubs_report_tells_nothing_to_expect(http: httpx.Client, client: OpenAI, db: Database) -> None:
    job_id = create(client)
    await move(db, job_id, "running")
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        await measured.expect(session, job, {}, Settings())
        await measured.keep(session, job, manifest(job_id, seconds=0.0), "local", Settings())
    shown = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    assert shown["estimate"] is None
    async with db.transaction() as session:
        assert await session.get(Measurement, job_id) is None


async def test_the_newest_run_tells_which_device_a_profile_has(
    client: OpenAI, http: httpx.Client, db: Database
) -> None:
    gpu = {"profile": "slurm", "kind": "gpu", "device": "NVIDIA H100 80GB HBM3"}
    await remember(db, create(client), "alpha", **gpu)
    found = http.post(URL, json=job_body(execution={"profile": "slurm"})).json()
    assert (found["device"]["kind"], found["basis"]["seconds"]) == ("gpu", "runs")
    asked = http.post(URL, json=job_body(execution={"profile": "slurm", "gpu_type": "A100"})).json()
    assert asked["basis"]["seconds"] == "rule"
    async with db.transaction() as session:
        for row in (await session.execute(select(Measurement).where(Measurement.profile == "slurm"))).scalars():
            row.created_at = row.created_at - timedelta(days=1)
    await remember(db, create(client), "alpha", profile="slurm")
    assert http.post(URL, json=job_body(execution={"profile": "slurm"})).json()["device"]["kind"] == "cpu"
