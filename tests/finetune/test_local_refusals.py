"""A job run by hand that is not right is refused with a sentence before anything is read or loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.__main__ import main
from finetune.exit_codes import BY_NAME

pytestmark = pytest.mark.unit


def refusal(folder: Path, content: Any) -> dict[str, Any]:
    """error.json after `train` with this job."""
    (folder / "train.json").write_text(content if isinstance(content, str) else json.dumps(content))
    status = main(["train", "--job", str(folder / "train.json"), "--out", str(folder / "out")])
    error: dict[str, Any] = json.loads((folder / "out" / "error.json").read_text())
    assert status == BY_NAME[error["code"]].status
    return error


@pytest.mark.parametrize(
    ("job", "code", "told"),
    [
        ("{", "invalid_step_file", "is no JSON file that can be read"),
        ([], "invalid_step_file", "a job has model and training_file"),
        ({"lora": {}, "seed": 1}, "invalid_step_file", "for a step file give its inputs too"),
        ({"training_file": "t.jsonl"}, "invalid_step_file", "model: Field required"),
        ({"model": "m", "training_file": "t", "lorra": {}}, "invalid_step_file", "unknown field; did you mean lora?"),
        (
            {"model": "m", "training_file": "t", "n_epochs": 1},
            "invalid_step_file",
            "did you mean hyperparameters.n_epochs?",
        ),
        (
            {"model": "m", "training_file": "t", "hyperparameters": {"beta": 0.2}},
            "unsupported_operation",
            "for method.type 'dpo' alone",
        ),
        (
            {
                "model": "m",
                "training_file": "t",
                "data": {"validation_split": 0.2},
                "hyperparameters": {"early_stopping_patience": 2},
                "execution": {"backend": "trl"},
            },
            "unsupported_operation",
            "does not stop early",
        ),
        (
            {
                "model": "m",
                "training_file": "t",
                "hyperparameters": {"packing": True},
                "execution": {"backend": "trl"},
            },
            "unsupported_operation",
            "our own loop packs",
        ),
        (
            {"model": "m", "training_file": "t", "execution": {"backend": "trl", "kernels": "compile"}},
            "unsupported_operation",
            "execution.kernels='compile' does not go with execution.backend='trl'",
        ),
        ({"model": "m", "training_file": "t.jsonl"}, "file_not_found", "there is no file"),
    ],
)
def test_a_wrong_job_says_what_is_wrong(job: Any, code: str, told: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, job)
    assert error["code"] == code
    assert told in error["message"]


def test_a_model_that_is_neither_folder_nor_name_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{}\n")
    error = refusal(tmp_path, {"model": "./nowhere", "training_file": "t.jsonl"})
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_bad_rows_end_the_job_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFLOW_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "t.jsonl").write_text("{}\n")
    assert refusal(tmp_path, {"model": "model", "training_file": "t.jsonl"})["code"] == "unsupported_model"
    assert (tmp_path / "out" / "data" / "train").is_dir()
