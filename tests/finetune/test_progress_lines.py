"""progress.jsonl and the files around it: whole or not there, whoever reads while they are written."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from finetune import progress
from finetune.progress import append, read_lines, write_atomic, write_report

pytestmark = pytest.mark.unit


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A progress.jsonl that is not there yet."""
    return tmp_path / "progress.jsonl"


def test_a_reader_gets_each_line_once(lines: Path) -> None:
    assert read_lines(lines) == ([], 0)
    append(lines, "start", total_steps=2)
    append(lines, "step", step=1, loss=0.5)
    first, offset = read_lines(lines)
    assert [line["event"] for line in first] == ["start", "step"]
    assert first[0]["time"] > 1e9
    assert read_lines(lines, offset) == ([], offset)
    append(lines, "step", step=2, loss=0.25)
    assert [line["loss"] for line in read_lines(lines, offset)[0]] == [0.25]


def test_a_half_line_is_left_until_it_is_whole(lines: Path) -> None:
    lines.write_bytes(b'{"event": "start"}\n{"event": "st')
    found, offset = read_lines(lines)
    assert (found, offset) == ([{"event": "start"}], 19)
    with lines.open("ab") as file:
        file.write(b'ep"}\n')
    assert read_lines(lines, offset)[0] == [{"event": "step"}]


def test_a_half_line_of_a_killed_writer_costs_only_itself(lines: Path) -> None:
    lines.write_bytes(b'{"event": "start"}\n{"event": "st')
    append(lines, "start", resumed_from=4)
    found, offset = read_lines(lines)
    assert [line.get("resumed_from") for line in found] == [None, 4]
    assert offset == lines.stat().st_size


def test_lines_that_are_no_objects_are_passed_over(lines: Path) -> None:
    lines.write_bytes(
        b'\x00\xff\n[1]\n\n{"event": "end", "loss": NaN}\n' + b"[" * 100_000 + b"\n" + b"9" * 5000 + b"\n"
    )
    assert read_lines(lines)[0] == [{"event": "end", "loss": None}]


def test_what_is_no_number_becomes_null(lines: Path) -> None:
    append(lines, "step", loss=float("nan"), more=[float("inf"), {"x": -float("inf")}, (1.5,)])
    ((found,), _) = read_lines(lines)
    assert (found["loss"], found["more"]) == (None, [None, {"x": None}, [1.5]])


def test_a_long_file_comes_in_pieces_and_a_monster_line_is_skipped(
    lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "READ_LIMIT", 200)
    for step in range(9):
        append(lines, "step", step=step)
    with lines.open("ab") as file:
        file.write(b"x" * 1299 + b'\n{"event": "step", "step": 9}\n')
    append(lines, "end", status="succeeded")
    found, offset, last = [], 0, -1
    while offset != last:
        last = offset
        more, offset = read_lines(lines, offset)
        found += more
    assert [line.get("step") or line["event"] for line in found] == ["step", *range(1, 9), "notice", 9, "end"]
    assert offset == lines.stat().st_size


def test_the_end_of_a_monster_line_is_not_taken_for_a_line(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "READ_LIMIT", 200)
    lines.write_bytes(b"x" * 200 + b'{"event": "end", "status": "succeeded"}\n')
    assert read_lines(lines, 0) == ([], 200)
    assert [line["event"] for line in read_lines(lines, 200)[0]] == ["notice"]


def test_a_line_over_the_limit_is_passed_over_with_a_notice(lines: Path) -> None:
    append(lines, "step", step=1)
    append(lines, "step", step=2, text="x" * progress.LINE_LIMIT)
    append(lines, "step", step=3)
    found, _ = read_lines(lines)
    assert [line["event"] for line in found] == ["step", "notice", "step"]
    assert "over 1 MiB" in found[1]["message"]


def test_a_hundred_megabytes_without_a_line_end_take_little_memory(lines: Path) -> None:
    with lines.open("wb") as file:
        file.truncate(100 << 20)
    tracemalloc.start()
    try:
        offset, last = 0, -1
        while offset != last:
            last = offset
            found, offset = read_lines(lines, offset)
            assert found == []
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert offset == 100 << 20
    assert taken < 3 * progress.READ_LIMIT


def test_two_writers_never_mix_their_lines(lines: Path) -> None:
    writers = [
        threading.Thread(target=lambda name=name: [append(lines, name, text="x" * 500) for _ in range(50)])
        for name in "ab"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(line["event"] for line in read_lines(lines)[0]) == ["a"] * 50 + ["b"] * 50


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "result.json", "old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "result.json", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("result.json", "old")]


def test_a_report_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_report(tmp_path, "prepare", "Prepared 3 examples.", {"loss": float("nan")})
    assert capsys.readouterr().out == "Prepared 3 examples.\n"
    assert json.loads((tmp_path / "prepare.report.json").read_text()) == {
        "message": "Prepared 3 examples.",
        "data": {"loss": None},
    }
