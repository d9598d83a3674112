"""Every mistake a request can hold is answered at once, with the field, a sentence and a code, and leaves nothing behind."""

# ruff: noqa: ASYNC212  the API answers in a thread of its own
from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from app.db import Database
from app.models import Event, Job
from tests.app.conftest import MODEL, Service, job_body, serving

pytestmark = pytest.mark.db


def supervised(**hyperparameters: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}}


MISTAKES: tuple[tuple[dict[str, Any], int, str, str | None, str], ...] = (
    # what is asked for besides a good request, status, code, param, words of the sentence
    ({"model": None}, 400, "missing_required_parameter", "model", "model is required"),
    ({"training_file": None}, 400, "missing_required_parameter", "training_file", "training_file is required"),
    ({"trainig_file": "x"}, 400, "unknown_parameter", "trainig_file", "did you mean 'training_file'?"),
    ({"learning_rate": 1e-3}, 400, "unknown_parameter", "learning_rate", "did you mean 'hyperparameters.learning_rate'?"),
    ({"hyperparameters": {"lerning_rate": 1}}, 400, "unknown_parameter", "hyperparameters.lerning_rate", "unknown field 'lerning_rate' in hyperparameters; did you mean 'learning_rate'?"),
    (supervised(n_epoch=3), 400, "unknown_parameter", "method.supervised.hyperparameters.n_epoch", "did you mean 'n_epochs'?"),
    ({"lora": {"rank": 8}}, 400, "unknown_parameter", "lora.rank", "known are alpha"),
    ({"hyperparameters": {"n_epochs": 99}}, 400, "invalid_value", "hyperparameters.n_epochs", 'hyperparameters.n_epochs must be "auto" or a whole number from 1 to 50, not 99'),
    (supervised(n_epochs=0), 400, "invalid_value", "method.supervised.hyperparameters.n_epochs", "from 1 to 50, not 0"),
    ({"hyperparameters": {"n_epochs": "many"}}, 400, "invalid_value", "hyperparameters.n_epochs", 'not "many"'),
    ({"hyperparameters": {"n_epochs": True}}, 400, "invalid_value", "hyperparameters.n_epochs", "not true"),
    ({"hyperparameters": {"batch_size": 257}}, 400, "invalid_value", "hyperparameters.batch_size", "from 1 to 256"),
    ({"hyperparameters": {"learning_rate": 0}}, 400, "invalid_value", "hyperparameters.learning_rate", "above 0 and of at most 1, not 0"),
    ({"hyperparameters": {"learning_rate_multiplier": -1}}, 400, "invalid_value", "hyperparameters.learning_rate_multiplier", "not -1"),
    ({"hyperparameters": {"lr_scheduler": "sine"}}, 400, "invalid_value", "hyperparameters.lr_scheduler", '"cosine", "linear" or "constant", not "sine"'),
    ({"hyperparameters": 3}, 400, "invalid_value", "hyperparameters", "must be an object, not 3"),
    ({"hyperparameters": {"n_epochs": 3}, **supervised(n_epochs=4)}, 400, "invalid_value", "hyperparameters.n_epochs", "given twice with two values (3 and 4)"),
    ({"lora": {"dropout": 1}}, 400, "invalid_value", "lora.dropout", "not 1"),
    ({"data": {"overlength": "cut"}}, 400, "invalid_value", "data.overlength", '"fail", "drop" or "truncate"'),
    ({"suffix": "x" * 65}, 400, "invalid_value", "suffix", "64 characters"),
    ({"suffix": "a:b"}, 400, "invalid_value", "suffix", "without colons"),
    ({"seed": -1}, 400, "invalid_value", "seed", "not -1"),
    ({"metadata": {f"k{n}": "v" for n in range(17)}}, 400, "invalid_value", "metadata", "at most 16"),
    ({"metadata": {"k": 1}}, 400, "invalid_value", "metadata.k", "text of at most 512 characters, not 1"),
    ({"metadata": {"k": "v" * 513}}, 400, "invalid_value", "metadata.k", "512 characters"),
    ({"metadata": {"k": "nul\x00"}}, 400, "invalid_value", "metadata.k", "cannot be stored"),
    ({"model": "HuggingFaceTB/\ud800"}, 400, "invalid_value", "model", "cannot be stored"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 400, "unsupported_parameter", "integrations", "OpenAI's own"),
    ({"method": {"type": "reinforcement"}}, 400, "unsupported_parameter", "method.reinforcement", "OpenAI's own"),
    ({"hyperparameters": {"beta": 0.1}}, 400, "unsupported_operation", "hyperparameters.beta", "for method.type 'dpo'"),
    ({"technique": "full", "execution": {"backend": "unsloth"}}, 400, "unsupported_operation", "execution.backend", "technique='full'"),
    ({"technique": "full", "output": {"register_as": "a"}}, 400, "unsupported_operation", "output.register_as", "makes a model"),
    ({"technique": "prefix"}, 400, "invalid_value", "technique", '"lora", "qlora" or "full"'),
    ({"evaluation": {"gate": {"metric": "loss"}}}, 400, "unsupported_operation", "evaluation.gate", "give validation_file or data.validation_split"),
    ({"evaluation": {"gate": {"min": 0.5}}, "data": {"validation_split": 0.2}}, 400, "missing_required_parameter", "evaluation.gate.metric", "required"),
    ({"evaluation": {"gate": {"metric": "accuracy"}}}, 400, "invalid_value", "evaluation.gate.metric", '"exact_match"'),
    ({"evaluation": {"gate": {"metric": "loss", "min": 0.5}}}, 400, "unsupported_operation", "evaluation.gate.min", "better the lower"),
    ({"model": "ft:x:y:z:w"}, 400, "model_not_found", "model", "There is no model 'ft:x:y:z:w' in this project"),
    ({"model": "SmolLM2-135M-Instruct"}, 400, "model_not_found", "model", f"did you mean '{MODEL}'?"),
    ({"model": "gpt-4o-mini-2024-07-18"}, 400, "model_not_found", "model", "does not exist here"),
    ({"model": "/etc/passwd"}, 400, "model_not_found", "model", "only through the models file"),
    ({"model": "org/name@../x"}, 400, "model_not_found", "model", "no revision"),
    ({"model": "s3://llamaflow-data/no/model/"}, 400, "model_not_found", "model", "config.json"),
    ({"model": "s3://elsewhere/model/"}, 400, "path_not_allowed", "model", "LLAMAFLOW_PATH_ALLOW"),
    ({"training_file": "train.jsonl"}, 400, "invalid_value", "training_file", "the id of a file (file-…) or an S3 address"),
    ({"training_file": "file-unknown"}, 400, "file_not_found", "training_file", "file-unknown"),
    ({"validation_file": "file-unknown"}, 400, "file_not_found", "validation_file", "file-unknown"),
    ({"training_file": "s3://llamaflow-data/api/none.jsonl"}, 400, "file_not_found", "training_file", "no object 'api/none.jsonl' in bucket 'llamaflow-data'"),
    ({"training_file": "s3://llamaflow-data/api/empty/"}, 400, "file_not_found", "training_file", "no object below"),
    ({"training_file": "s3://elsewhere/train.jsonl"}, 400, "path_not_allowed", "training_file", "outside what this project may use"),
    ({"training_file": "s3://llamaflow-data/api/../x"}, 400, "path_not_allowed", "training_file", "'..' parts"),
    ({"training_file": "s3://llamaflow-data/files/proj_beta/file-x"}, 400, "path_not_allowed", "training_file", "named by their id"),
    ({"training_file": "s3://llamaflow-data/files/"}, 400, "path_not_allowed", "training_file", "named by their id"),
    ({"training_file": "s3://llamaflow-data/"}, 400, "path_not_allowed", "training_file", "named by their id"),
    ({"training_file": "s3://Bad_Bucket/x"}, 400, "invalid_value", "training_file", "an S3 address"),
    ({"output": {"path": "s3://elsewhere/out/"}}, 400, "path_not_allowed", "output.path", "outside"),
    ({"output": {"path": "/tmp/out"}}, 400, "invalid_value", "output.path", "an S3 address such as"),
    ({"output": {"register_as": "No Spaces"}}, 400, "invalid_value", "output.register_as", "1 to 64 of a-z, 0-9 and -"),
    ({"callback_url": "http://127.0.0.1:9/x"}, 400, "callback_not_allowed", "callback_url", "LLAMAFLOW_WEBHOOK_ALLOW=127.0.0.1:9"),
    ({"callback_url": "http://169.254.169.254/"}, 400, "callback_not_allowed", "callback_url", "metadata"),
    ({"callback_url": "ftp://example.org/"}, 400, "invalid_value", "callback_url", "http"),
    ({"callback_events": ["fine_tuning.job.succeded"]}, 400, "invalid_value", "callback_events[0]", "fine_tuning.job.succeeded"),
)  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda row: f"{row[3]}-{row[4][:30]}")
def test_a_mistake_is_told_at_once(
    http: httpx.Client, mistake: tuple[dict[str, Any], int, str, str | None, str]
) -> None:
    fields, status, code, param, words = mistake
    content = json.dumps(job_body(**fields))  # with \\u escapes, as halves of surrogate pairs can only be sent
    answer = http.post("/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


def test_several_mistakes_are_told_together(http: httpx.Client) -> None:
    body = job_body(hyperparameters={"n_epochs": 99, "batch_size": 0, "warmup": 1}, sufix="x")
    error = http.post("/v1/fine_tuning/jobs", json=body).json()["error"]
    told = {each["param"] for each in error["errors"]}
    assert told == {"hyperparameters.n_epochs", "hyperparameters.batch_size", "hyperparameters.warmup", "sufix"}


async def test_a_refused_request_leaves_nothing_behind(http: httpx.Client, db: Database) -> None:
    async def counts() -> tuple[int, ...]:
        async with db.transaction() as session:
            return tuple(
                [(await session.execute(select(func.count()).select_from(t))).scalar_one() for t in (Job, Event)]
            )

    before = await counts()
    for fields in ({"seed": -1}, {"training_file": "file-unknown"}, {"callback_url": "http://10.0.0.1/"}):
        assert http.post("/v1/fine_tuning/jobs", json=job_body(**fields)).status_code == 400
    assert await counts() == before


def test_broken_json_is_told_with_its_place(http: httpx.Client) -> None:
    answer = http.post(
        "/v1/fine_tuning/jobs", content=b'{"model": "m",\n  "seed": ,}', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"
    assert "line 2, column 11" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "no body"), (b"[1]", "must be a JSON object, not [1]"), (b'"text"', "must be a JSON object"), (b"\xff{}", "JSON"), (b"[" * 60000, "JSON")],
)  # fmt: skip
def test_a_body_that_is_no_object_is_told(http: httpx.Client, content: bytes, words: str) -> None:
    answer = http.post("/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_form_is_told_to_be_json(http: httpx.Client) -> None:
    error = http.post("/v1/fine_tuning/jobs", data={"model": "x"}).json()["error"]
    assert "content-type: application/json" in error["message"]


def test_nulls_and_numbers_as_text_are_fine(http: httpx.Client) -> None:
    nulls = dict.fromkeys(
        ("suffix", "seed", "metadata", "integrations", "validation_file", "hyperparameters", "callback_url")
    )
    job = http.post("/v1/fine_tuning/jobs", json=job_body(**nulls))
    assert job.status_code == 201
    text = {"n_epochs": "3", "learning_rate": "2e-5", "packing": "false"}
    shown = http.post("/v1/fine_tuning/jobs", json=job_body(hyperparameters=text)).json()["hyperparameters"]
    assert (shown["n_epochs"], shown["learning_rate"], shown["packing"]) == (3, 2e-5, False)


def test_a_refusal_by_s3_is_told_with_what_must_be_allowed(service: Service) -> None:
    wrong = service.settings.model_copy(update={"s3_secret_key": SecretStr("wrong" * 8)})
    with serving(wrong) as url, Service(url, wrong, service.s3).http() as http:
        error = http.post("/v1/fine_tuning/jobs", json=job_body()).json()["error"]
        upload = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": b"x"})
    assert (error["code"], error["param"]) == ("path_forbidden", "training_file")
    assert (upload.status_code, upload.json()["error"]["code"]) == (503, "s3_unavailable")
