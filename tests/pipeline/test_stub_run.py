"""The whole pipeline with stubs under a real Nextflow: names, outputs that parse, resume, retries, and what ends at once.

Few runs with many looks at each: a head costs seconds.
"""

from __future__ import annotations

import csv
import fcntl
import json
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import plan, steps
from finetune.exit_codes import nextflow_config

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).resolve().parents[2]
PROFILES = {"local": "local", "docker": "local", "slurm": "slurm", "k8s": "k8s", "awsbatch": "awsbatch"}
PROCESSES = ["DOWNLOAD_DATA", "EVALUATE", "FETCH_MODEL", "FINE_TUNE", "PREPARE_DATA", "UPLOAD_MODEL"]


def trace(folder: Path, name: str = "trace.tsv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write_steps(folder: Path, **values: Any) -> Path:
    """Step files as the service writes them."""
    params = {"input": "s3://llamaflow-data/rows.jsonl", "preset": "none", "job_id": "ftjob-stub", **values}
    (folder / "given.json").write_text(
        json.dumps({"params": params, "launch_dir": str(folder), "state_dir": str(folder / "state")})
    )
    plan.write_plan(folder / "given.json", folder, plan.unpinned)
    return folder / "steps"


def wait_until(condition: Callable[[], bool], head: subprocess.Popen[bytes] | None) -> None:
    """Come back as soon as `condition` holds; fail after 30 s, or when the head has ended before."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass in 30 s"
        assert head is None or head.poll() is None, "Nextflow ended"
        time.sleep(0.05)


def lock_is_held(path: Path) -> bool:
    """Whether a process holds the training's lock."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture(scope="module")
def stubbed(
    nextflow: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, subprocess.CompletedProcess[str]]:
    """One run from step files; its folder, session and end."""
    folder, session = tmp_path_factory.mktemp("stubbed"), str(uuid.uuid4())
    write_steps(folder)
    ended = nextflow(folder, "--steps", "steps", "-with-trace", "trace.tsv", "-stub-run", env={"NXF_UUID": session})
    assert ended.returncode == 0, ended.stdout
    return folder, session, ended


def test_every_process_runs_once_and_plan_does_not(stubbed: Any) -> None:
    rows = trace(stubbed[0])
    assert sorted(row["process"] for row in rows) == PROCESSES
    assert {(row["status"], row["attempt"], row["exit"]) for row in rows} == {("COMPLETED", "1", "0")}


def test_every_output_parses(stubbed: Any) -> None:
    works = {row["process"]: Path(row["workdir"]) for row in trace(stubbed[0])}
    steps.Source.model_validate_json((works["DOWNLOAD_DATA"] / "data" / "source.json").read_bytes())
    steps.Base.model_validate_json((works["FETCH_MODEL"] / "base.json").read_bytes())
    steps.Resolved.model_validate_json((works["PREPARE_DATA"] / "prepared" / "resolved.json").read_bytes())
    steps.EvaluationResult.model_validate_json((works["EVALUATE"] / "evaluation.json").read_bytes())
    manifest = steps.Manifest.model_validate_json((works["UPLOAD_MODEL"] / "manifest.json").read_bytes())
    assert (manifest.job, manifest.result.status) == ("ftjob-stub", "succeeded")
    assert all(json.loads(next(work.glob("*.report.json")).read_text())["message"] for work in works.values())


def test_model_s3_txt_is_published_in_the_launch_folder(stubbed: Any) -> None:
    assert (stubbed[0] / "model_s3.txt").read_text() == "model uploaded to s3://llamaflow-data/model/ftjob-stub/\n"


def test_the_training_keeps_its_state_in_the_jobs_folder(stubbed: Any) -> None:
    lines = [
        json.loads(line) for line in (stubbed[0] / "state" / "ftjob-stub" / "progress.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, 11))
    assert lines[-1]["event"] == "end"


def test_a_resumed_run_repeats_nothing_although_the_step_files_were_written_again(stubbed: Any, nextflow: Any) -> None:
    folder, session, _ = stubbed
    write_steps(folder)
    ended = nextflow(folder, "--steps", "steps", "-with-trace", "again.tsv", "-stub-run", "-resume", session)
    assert ended.returncode == 0, ended.stdout
    assert sorted((row["process"], row["status"]) for row in trace(folder, "again.tsv")) == [
        (name, "CACHED") for name in PROCESSES
    ]


def test_what_else_is_asked_for_is_exported_and_goes_up(nextflow: Any, tmp_path: Path) -> None:
    write_steps(tmp_path, merge=True, gguf=True)
    ended = nextflow(tmp_path, "--steps", "steps", "-with-trace", "trace.tsv", "-stub-run")
    assert ended.returncode == 0, ended.stdout
    works = {row["process"]: Path(row["workdir"]) for row in trace(tmp_path)}
    assert sorted(works) == sorted([*PROCESSES, "EXPORT_MODEL"])
    assert (works["EXPORT_MODEL"] / "exported" / "merged" / "config.json").is_file()
    manifest = steps.Manifest.model_validate_json((works["UPLOAD_MODEL"] / "manifest.json").read_bytes())
    assert manifest.export is not None
    assert manifest.statistics is not None


def test_a_model_of_all_weights_goes_through_as_a_model(nextflow: Any, tmp_path: Path) -> None:
    write_steps(tmp_path, technique="full")
    ended = nextflow(tmp_path, "--steps", "steps", "-with-trace", "trace.tsv", "-stub-run")
    assert ended.returncode == 0, ended.stdout
    works = {row["process"]: Path(row["workdir"]) for row in trace(tmp_path)}
    assert (works["FINE_TUNE"] / "model" / "model.safetensors").is_file()
    assert (works["UPLOAD_MODEL"] / "model" / "config.json").is_file()
    assert (works["FINE_TUNE"] / "parent" / "parent.json").read_text() == "{}\n"


def test_a_transient_failure_is_tried_again_and_a_users_mistake_ends_at_once(nextflow: Any, tmp_path: Path) -> None:
    write_steps(tmp_path)
    faults = {"LLAMAFLOW_STUB_FAULT": "download=s3_unavailable:once,prepare=no_trainable_tokens"}
    ended = nextflow(tmp_path, "--steps", "steps", "-with-trace", "trace.tsv", "-stub-run", env=faults)
    assert ended.returncode == 1
    found = {(row["process"], row["attempt"]): (row["status"], row["exit"]) for row in trace(tmp_path)}
    assert found["DOWNLOAD_DATA", "1"] == ("FAILED", "69")
    assert found["DOWNLOAD_DATA", "2"] == ("COMPLETED", "0")
    assert found["PREPARE_DATA", "1"] == ("FAILED", "68")
    assert {name for name, _ in found} == {"DOWNLOAD_DATA", "FETCH_MODEL", "PREPARE_DATA"}
    assert ("PREPARE_DATA", "2") not in found
    assert "No token of the dataset would be trained" in ended.stdout
    assert not (tmp_path / "model_s3.txt").exists()


def test_an_unknown_parameter_ends_a_run_by_hand_with_the_nearest_name(nextflow: Any, tmp_path: Path) -> None:
    ended = nextflow(tmp_path, "--input", "s3://llamaflow-data/x.jsonl", "--n_epoch", "3")
    assert ended.returncode == 1
    assert "There is no parameter --n_epoch. Did you mean --n_epochs?" in ended.stdout


def test_term_to_the_head_reaches_the_training_and_leaves_nothing_running(nextflow: Any, tmp_path: Path) -> None:
    write_steps(tmp_path)
    head = nextflow.start(tmp_path, "--steps", "steps", "-stub-run", env={"LLAMAFLOW_STUB_SECONDS": "600"})
    progress = tmp_path / "state" / "ftjob-stub" / "progress.jsonl"
    wait_until(progress.is_file, head)
    head.terminate()
    assert head.wait(timeout=30) == 1
    wait_until(lambda: not lock_is_held(progress.with_name("owner.lock")), None)
    wait_until(lambda: any(tmp_path.glob("work/*/*/error.json")), None)
    error = json.loads(next(tmp_path.glob("work/*/*/error.json")).read_text())
    assert error["code"] == "interrupted"


def test_text_in_a_parameter_reaches_no_shell(nextflow: Any, tmp_path: Path) -> None:
    evil = "s3://llamaflow-data/$(touch${IFS}pwned)`touch pwned`'\"; touch pwned; ${1/0}.jsonl"
    ended = nextflow(tmp_path, "--input", evil, "-stub-run")
    assert ended.returncode == 0, ended.stdout
    assert list(tmp_path.rglob("pwned")) == []
    planned = next(tmp_path.glob("work/*/*/steps/download.json"))
    assert steps.DownloadStep.model_validate_json(planned.read_bytes()).training[0].uri == evil


def test_which_statuses_are_tried_again_is_generated() -> None:
    assert (ROOT / "pipeline" / "conf" / "exit_codes.config").read_text() == nextflow_config()


def test_every_profile_parses(nextflow: Any, tmp_path: Path) -> None:
    ended = nextflow(tmp_path, "-show-profiles", command="config")
    assert ended.returncode == 0, ended.stdout
    for profile, executor in PROFILES.items():
        shown = ended.stdout.split(f"   {profile} {{")[1]
        assert f"executor = '{executor}'" in shown.split("\n   }\n")[0]


def test_modules_are_short_and_paste_no_parameter_into_a_script() -> None:
    modules = sorted((ROOT / "pipeline" / "modules").glob("*.nf"))
    assert [path.stem for path in modules] == [
        "download_data",
        "evaluate",
        "export_model",
        "fetch_model",
        "fine_tune",
        "plan",
        "prepare_data",
        "upload_model",
    ]
    for path in modules:
        text = path.read_text()
        assert len(text.splitlines()) <= 50
        assert "params." not in text
        assert all(word in text for word in ("tag ", "label ", "input:", "output:", "script:", "stub:")), path
