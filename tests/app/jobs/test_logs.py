"""Logs are read below the job's own folder only, bounded, and harmless on a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import NotFound
from app.jobs import logs
from app.models import Run, Stage

pytestmark = pytest.mark.unit


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "runs" / "ftjob-1"
    for folder, name, text in (
        ("run-1", "stdout.log", "Submitted process > FINE_TUNE\n"),
        ("work/aa", ".command.log", "Prepared 12 rows"),
        ("work/bb", ".command.log", "".join(f"step {n}\n" for n in range(1, 11))),
    ):
        (made / folder).mkdir(parents=True)
        (made / folder / name).write_text(text, encoding="utf-8")
    return made


def rows(home: Path) -> tuple[list[Run], list[tuple[Stage, int]]]:
    stages = [("PREPARE_DATA", "aa", "succeeded"), ("FINE_TUNE", "bb", "running"), ("EVALUATE", None, "submitted")]
    made = [
        (Stage(process=name, workdir=str(home / "work" / folder) if folder else None, attempt=1, status=status), 1)
        for name, folder, status in stages
    ]
    return [Run(attempt=1, folder=str(home / "run-1"))], made


def read(home: Path, stage: str | None = None, tail: int | None = None) -> str:
    return logs.read(home, *rows(home), stage=stage, tail=tail)


def test_the_whole_log_is_the_runs_and_each_stages_in_order(home: Path) -> None:
    text = read(home)
    heads = [line for line in text.splitlines() if line.startswith("== ")]
    assert heads == [
        "== run 1: stdout.log",
        "== PREPARE_DATA: run 1, attempt 1, succeeded",
        "== FINE_TUNE: run 1, attempt 1, running",
        "== EVALUATE: run 1, attempt 1, submitted",
    ]
    assert "Prepared 12 rows\n== FINE_TUNE" in text


def test_one_stage_and_the_end_of_it(home: Path) -> None:
    assert read(home, stage="fine_tune", tail=2) == "step 9\nstep 10\n"


def test_a_stage_that_is_not_there_is_told_with_those_that_are(home: Path) -> None:
    with pytest.raises(NotFound, match="it has PREPARE_DATA, FINE_TUNE, EVALUATE"):
        read(home, stage="../../etc/passwd")


def test_a_link_that_leads_out_of_the_jobs_folder_is_not_followed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (home / "work/aa/.command.log").unlink()
    (home / "work/aa/.command.log").symlink_to(tmp_path / "secret")
    assert "secret" not in read(home)


def test_a_stage_whose_folder_lies_elsewhere_is_not_read(home: Path, tmp_path: Path) -> None:
    (tmp_path / ".command.log").write_text("secret", encoding="utf-8")
    stage = Stage(process="X", workdir=str(tmp_path), attempt=1, status="running")
    assert "secret" not in logs.read(home, [], [(stage, 1)], stage=None, tail=None)


def test_a_huge_log_is_cut_at_its_beginning(home: Path) -> None:
    (home / "work/bb/.command.log").write_bytes(b"x" * 99 + b"\n" + (b"y" * 99 + b"\n") * 30_000)
    text = read(home, stage="FINE_TUNE")
    assert len(text) == logs.MAX_BYTES
    assert text.endswith("y\n")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m\n", "red\n"),
        ("\x1b]0;title\x07text", "text"),
        ("10%\r20%\r\n", "10%\n20%\n"),
        ("a\x00b\x08c\x9bd", "a�b�c�d"),
        ("abc\u202edef", "abc�def"),
        ("tab\tträin 漢字 😀\n", "tab\tträin 漢字 😀\n"),
    ],
)
def test_what_could_harm_a_terminal_is_taken_out(raw: str, shown: str) -> None:
    assert logs.harmless(raw) == shown
