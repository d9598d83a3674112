"""Parameters of a run by hand: each is an option of a job, and a wrong one is named with what was probably meant."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune import plan, steps
from finetune.config import JobSpec
from finetune.exit_codes import StepError

pytestmark = pytest.mark.unit

INPUT = {"input": "s3://bucket/data.jsonl"}


def spec(**values: Any) -> JobSpec:
    return plan.job_spec(plan.check_names(INPUT | values))


def test_without_more_the_text_source_recipe_is_planned() -> None:
    made = spec(preset="text_source")
    hyper = made.hyperparameters
    assert (hyper.n_epochs, hyper.batch_size, hyper.learning_rate, hyper.max_length) == (1, 8, 2e-5, 128)
    assert (made.data.format, made.data.overlength) == ("text_source", "truncate")
    assert made.output.path == "s3://llamaflow-data/model/"


@pytest.mark.parametrize(
    ("name", "value", "path", "wanted"),
    [
        ("n_epochs", 3, "hyperparameters.n_epochs", 3),
        ("n_epochs", "auto", "hyperparameters.n_epochs", "auto"),
        ("learning_rate", "2e-4", "hyperparameters.learning_rate", 2e-4),
        ("lora_r", 8, "lora.r", 8),
        ("lora_target_modules", "q_proj,v_proj", "lora.target_modules", ["q_proj", "v_proj"]),
        ("lora_target_modules", "all-linear", "lora.target_modules", "all-linear"),
        ("validation_split", 0.1, "data.validation_split", 0.1),
        ("metrics", "loss,contains", "evaluation.metrics", ["loss", "contains"]),
        ("prompts", "Who are you?", "evaluation.prompts", ["Who are you?"]),
        ("archive", "zip", "output.archive", "zip"),
        ("output", "s3://other/place/", "output.path", "s3://other/place/"),
        ("model_name", "org/name", "model", "org/name"),
        ("modelName", "org/name", "model", "org/name"),
        ("model-name", "org/name", "model", "org/name"),
        ("suffix", 2026, "suffix", "2026"),
        ("seed", 7, "seed", 7),
    ],
)
def test_a_parameter_reaches_its_option(name: str, value: Any, path: str, wanted: Any) -> None:
    found: Any = spec(**{name: value})
    for part in path.split("."):
        found = getattr(found, part)
    assert found == wanted


def test_what_is_given_wins_over_the_preset() -> None:
    made = spec(preset="text_source", n_epochs=4)
    assert (made.hyperparameters.n_epochs, made.hyperparameters.batch_size) == (4, 8)


def test_preset_none_leaves_the_services_defaults() -> None:
    assert spec(preset="none").hyperparameters.n_epochs == "auto"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_epoch": 1}, "Did you mean --n_epochs?"),
        ({"learningrate": 1}, "Did you mean --learning_rate?"),
        ({"inptu": "x"}, "Did you mean --input?"),
        ({"xyzzy": 1}, "docs/pipeline.md lists"),
        ({"n_epochs": 99}, "--n_epochs 99:"),
        ({"lora_r": 0}, "--lora_r 0:"),
        ({"output": "/tmp"}, "--output '/tmp':"),
        ({"technique": "full", "backend": "unsloth"}, "does not go with technique='full'"),
        ({"technique": "prefix"}, "--technique 'prefix':"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(StepError) as caught:
        spec(**values)
    assert said in caught.value.message


def test_an_input_must_be_given() -> None:
    with pytest.raises(StepError, match="--input is missing"):
        plan.job_spec({})


def test_local_files_are_taken_from_the_launch_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    pinned = plan.pin("rows.jsonl", steps.S3(), tmp_path, "input")
    assert pinned == [steps.Pinned(uri=(tmp_path / "rows.jsonl").as_uri(), size=3)]
    with pytest.raises(StepError, match=r"--input: there is no file .*/gone\.jsonl"):
        plan.pin("gone.jsonl", steps.S3(), tmp_path, "input")


def test_every_step_file_is_written_and_reads_back(tmp_path: Path) -> None:
    run = {
        "params": INPUT | {"steps": None, "merge": True},
        "session": "0f1e2d3c-4b5a",
        "launch_dir": str(tmp_path),
        "state_dir": "/srv/state",
    }
    (tmp_path / "params.json").write_text(json.dumps(run))
    plan.write_plan(tmp_path / "params.json", tmp_path, plan.unpinned)
    files = {
        name: kind.model_validate_json((tmp_path / "steps" / f"{name}.json").read_bytes())
        for name, kind in steps.STEP_FILES.items()
    }
    upload, train = files["upload"], files["train"]
    assert isinstance(upload, steps.UploadStep)
    assert isinstance(train, steps.TrainStep)
    assert upload.job == "run-0f1e2d3c4b5a"
    assert train.state_dir == upload.state_dir == "/srv/state/run-0f1e2d3c4b5a"


def test_nothing_is_exported_that_was_not_asked_for(tmp_path: Path) -> None:
    plain = plan.plan(INPUT, {"launch_dir": str(tmp_path)}, plan.unpinned)
    both = plan.plan(INPUT | {"merge": "true", "gguf": True, "suffix": "desk"}, {"launch_dir": "."}, plan.unpinned)
    assert set(steps.STEP_FILES) - set(plain) == {"export"}
    assert both["export"] == steps.ExportStep(merge=True, gguf=True, name="desk")
    assert '"gguf"' not in plain["fetch"].text()
    assert '"gguf": true' in both["fetch"].text()


def test_the_same_parameters_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "params.json").write_text(json.dumps(INPUT | {"gguf": True}))
        plan.write_plan(tmp_path / name / "params.json", tmp_path / name, plan.unpinned)
    for name in steps.STEP_FILES:
        assert (tmp_path / "one" / "steps" / f"{name}.json").read_bytes() == (
            tmp_path / "two" / "steps" / f"{name}.json"
        ).read_bytes()


def test_a_job_id_that_would_leave_the_prefix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="--job_id"):
        plan.plan(INPUT | {"job_id": "../other"}, {"launch_dir": str(tmp_path)}, plan.unpinned)


def test_the_documentation_lists_every_parameter_and_no_other() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "pipeline.md").read_text(encoding="utf-8")
    section = text.split("### Parameters")[1].split("## S3 and other settings")[0]
    listed = set(re.findall(r"--([a-z][a-z0-9_]+)", section)) - {"n_epoch"}
    offered = {*plan.parameters(), *plan.AROUND} - {"gate", "on_reject"}
    assert listed == offered
