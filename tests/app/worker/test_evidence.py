"""How a run's end is judged by what it left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.nextflow.process import ExitRecord
from app.worker.evidence import LOST, PAUSED, SUCCEEDED, Verdict, judge
from tests.app.nextflow.test_progress import HEADER

pytestmark = pytest.mark.unit

ENDED = ExitRecord(1, asked=False)


def trace(folder: Path, *tasks: tuple[str, str, int | None, str]) -> None:
    """A trace of tasks: process, status, exit status, error action; each with a work folder of its own."""
    rows = [HEADER]
    for number, (process, status, code, action) in enumerate(tasks):
        work = folder / f"task-{number}"
        work.mkdir()
        cells = [number, f"aa/{number:06}", 1, process, process, "-", status, "-" if code is None else code, number + 1]
        rows.append("\t".join(map(str, [*cells, 1, 1, 1, 1, 1, "-", "-", "-", work, action])))
    (folder / "trace.tsv").write_text("\n".join(rows) + "\n")


def code(verdict: Verdict) -> str | None:
    return verdict.error["code"] if verdict.error else None


def test_status_zero_is_success(tmp_path: Path) -> None:
    assert judge(tmp_path, ExitRecord(0, asked=False)) == SUCCEEDED


def test_the_failed_task_says_why_itself(tmp_path: Path) -> None:
    trace(tmp_path, ("DOWNLOAD_DATA", "COMPLETED", 0, "-"), ("PREPARE_DATA", "FAILED", 71, "TERMINATE"))
    error = {"code": "overlength_examples", "message": "Line 3 is too long.", "param": "training_file"}
    (tmp_path / "task-1" / "error.json").write_text(json.dumps(error))
    assert judge(tmp_path, ENDED) == Verdict("failed", error)


def test_without_its_word_the_exit_status_tells(tmp_path: Path) -> None:
    trace(tmp_path, ("FINE_TUNE", "FAILED", 77, "TERMINATE"))
    assert code(judge(tmp_path, ENDED)) == "loss_diverged"


def test_an_unknown_status_is_an_internal_error_that_names_the_stage(tmp_path: Path) -> None:
    trace(tmp_path, ("EVALUATE", "FAILED", 1, "TERMINATE"))
    verdict = judge(tmp_path, ENDED)
    assert code(verdict) == "internal_error"
    assert verdict.error is not None
    assert "EVALUATE" in str(verdict.error["message"])


def test_killed_on_every_attempt_is_out_of_memory(tmp_path: Path) -> None:
    trace(tmp_path, ("FINE_TUNE", "FAILED", 137, "RETRY"), ("FINE_TUNE", "FAILED", 137, "TERMINATE"))
    assert code(judge(tmp_path, ENDED)) == "out_of_memory"


def test_killed_once_is_nobodys_fault(tmp_path: Path) -> None:
    trace(tmp_path, ("FINE_TUNE", "FAILED", 143, "RETRY"), ("FINE_TUNE", "FAILED", 137, "TERMINATE"))
    assert judge(tmp_path, ENDED) == LOST


@pytest.mark.parametrize("record", [None, ExitRecord(-9, asked=False), ExitRecord(1, asked=True)])
def test_a_run_that_was_ended_from_outside_is_lost(tmp_path: Path, record: ExitRecord | None) -> None:
    trace(tmp_path, ("FINE_TUNE", "ABORTED", None, "-"))
    assert judge(tmp_path, record) == LOST


@pytest.mark.parametrize(("status", "verdict"), [(80, PAUSED), (81, LOST)])
def test_a_task_that_was_asked_to_stop_has_not_failed(tmp_path: Path, status: int, verdict: Verdict) -> None:
    trace(tmp_path, ("FINE_TUNE", "FAILED", status, "TERMINATE"))
    assert judge(tmp_path, ENDED) == verdict


def test_a_session_that_another_head_holds_is_lost(tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_text("ERROR ~ Unable to acquire lock on session with ID x\n")
    assert judge(tmp_path, ENDED) == LOST


def test_nextflows_own_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "stdout.log").write_text("Launching\nERROR ~ Unknown configuration profile: 'moon'\n")
    verdict = judge(tmp_path, ENDED)
    assert code(verdict) == "internal_error"
    assert verdict.error is not None
    assert "profile: 'moon'" in str(verdict.error["message"])


def test_a_nextflow_that_cannot_start_is_told(tmp_path: Path) -> None:
    assert code(judge(tmp_path, ExitRecord(None, asked=False, error="no java"))) == "internal_error"
