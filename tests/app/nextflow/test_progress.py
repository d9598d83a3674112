"""What is read out of Nextflow's and the tasks' files, from where the last reading ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.nextflow import progress
from app.nextflow.progress import Cursor, Row, Submitted

pytestmark = pytest.mark.unit

HEADER = "task_id\thash\tnative_id\tname\tprocess\ttag\tstatus\texit\tattempt\tsubmit\tstart\tcomplete\tduration\trealtime\tqueue\t%cpu\tpeak_rss\tworkdir\terror_action"
DONE = "1\t0d/7f7b2c\t13623\tFETCH_MODEL (fetch.json)\tFETCH_MODEL\tfetch.json\tCOMPLETED\t0\t1\t1795254948586\t1795254948597\t1795254948647\t61\t4\t-\t100.0\t5107712\t{work}/0d/7f7b2c052f\t-"
FAILED = "3\t6e/d1adca\t13901\tFINE_TUNE (train.json)\tFINE_TUNE\ttrain.json\tFAILED\t81\t1\t1795254951761\t1795254951796\t1795254951797\t36\t1\t-\t-\t-\t{work}/6e/d1adca\tRETRY"
GONE = "4\t24/fd76b4\t14865\tB\tB\t-\tABORTED\t2147483647\t1\t1795254994132\t1795254994232\t-\t-\t-\t-\t-\t-\t{work}/24/fd\t-"


def test_rows_of_the_trace_become_values() -> None:
    done, failed, gone = progress.parse_rows(HEADER, [DONE, FAILED, GONE])
    assert done == Row(
        "0d/7f7b2c", "FETCH_MODEL", "COMPLETED", 0, 1, 1795254948.586, 1795254948.597, 1795254948.647, 5107712,
        "{work}/0d/7f7b2c052f", None,
    )  # fmt: skip
    assert (failed.exit, failed.attempt, failed.error_action, failed.peak_rss) == (81, 1, "RETRY", None)
    assert (gone.status, gone.exit, gone.complete) == ("ABORTED", None, None)


def test_a_torn_row_is_passed_over() -> None:
    assert progress.parse_rows(HEADER, [DONE[:40], ""]) == []


def test_submissions_are_told_from_the_rest_of_the_output() -> None:
    lines = [
        "N E X T F L O W  ~  version 24.10.0",
        "[88/ffcdb3] Submitted process > FINE_TUNE (train.json)",
        "[88/ffcdb3] NOTE: Process `FINE_TUNE (train.json)` terminated with an error exit status (81) -- Execution is retried (1)",
        "[d3/5d441e] Re-submitted process > FINE_TUNE (train.json)",
        "[72/f18d9d] Cached process > DOWNLOAD_DATA (download.json)",
    ]
    assert progress.submissions(lines) == [
        Submitted("88/ffcdb3", "FINE_TUNE"),
        Submitted("d3/5d441e", "FINE_TUNE"),
        Submitted("72/f18d9d", "DOWNLOAD_DATA", cached=True),
    ]


def test_a_half_line_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("one\ntw")
    assert progress.read_text(file) == (["one"], 4)
    file.write_text("one\ntwo\n")
    assert progress.read_text(file, 4) == (["two"], 8)
    assert progress.read_text(tmp_path / "missing", 3) == ([], 3)


def test_a_line_without_end_is_skipped_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_bytes(b"x" * (progress.READ_LIMIT * 2 + 5) + b"\nshort\n")
    offset, found = 0, []
    while (step := progress.read_text(file, offset))[1] != offset:
        found, offset = found + step[0], step[1]
    assert found[-1] == "short"
    assert offset == file.stat().st_size


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder in which FETCH_MODEL has just been submitted."""
    for name in ("run-1", "train", "work/0d/7f7b2c052f"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run-1" / "stdout.log").write_text("[0d/7f7b2c] Submitted process > FETCH_MODEL (fetch.json)\n")
    return tmp_path


def look(job: Path, cursor: Cursor) -> tuple[progress.Seen, Cursor]:
    return progress.look(job / "run-1", job / "work", job / "train", cursor)


def test_a_task_is_submitted_begins_and_ends_once(job: Path) -> None:
    seen, cursor = look(job, Cursor())
    assert (len(seen.submitted), seen.began, seen.ended) == (1, [], [])
    task = job / "work/0d/7f7b2c052f"
    (task / ".command.begin").touch()
    seen, cursor = look(job, cursor)
    assert [(began.process, began.workdir) for began in seen.began] == [("FETCH_MODEL", str(task))]
    (task / "fetch.report.json").write_text(json.dumps({"message": "Fetched it.", "data": {"bytes": 3}}))
    (job / "run-1/trace.tsv").write_text(f"{HEADER}\n{DONE.format(work=job / 'work')}\n")
    seen, cursor = look(job, cursor)
    assert [end.report for end in seen.ended] == [{"message": "Fetched it.", "data": {"bytes": 3}}]
    assert cursor.folders == {"FETCH_MODEL": str(task)}
    seen, again = look(job, cursor)
    assert not seen
    assert again == cursor


def test_a_cursor_survives_the_database(job: Path) -> None:
    (job / "train/progress.jsonl").write_text('{"event": "start", "total_steps": 3}\n')
    _, cursor = look(job, Cursor())
    stored = Cursor(**json.loads(json.dumps(cursor.as_json())))
    assert stored == cursor
    assert not look(job, stored)[0]


def test_the_next_run_reads_its_own_output_and_the_same_training(job: Path) -> None:
    (job / "train/progress.jsonl").write_text('{"event": "start", "total_steps": 3}\n')
    _, cursor = look(job, Cursor())
    following = cursor.for_next_run()
    assert (following.stdout, following.waiting) == (0, {})
    assert following.progress == cursor.progress > 0
