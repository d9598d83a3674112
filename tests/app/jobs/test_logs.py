"""Logs are read below the job's own folder only, bounded however long they are, without secrets, and harmless on a terminal."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from app.errors import NotFound
from app.jobs import logs
from app.jobs.follow import Follower
from app.jobs.logs import BLOCK, MAX_BYTES, File, Folder, Reader, Source
from app.jobs.redact import Redactor
from app.models import Run, Stage

pytestmark = pytest.mark.unit

SECRET = "the-secret-of-s3"
OVER = Reader(Redactor([SECRET]), over=True)
RUNNING = Reader(Redactor([SECRET]), over=False)


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


def sources(home: Path, stage: str | None = None) -> list[Source]:
    stages = [("PREPARE_DATA", "aa", "succeeded"), ("FINE_TUNE", "bb", "running"), ("EVALUATE", None, "submitted")]
    made = [
        (Stage(process=name, workdir=str(home / "work" / folder) if folder else None, attempt=1, status=status), 1)
        for name, folder, status in stages
    ]
    runs = [Run(attempt=1, folder=str(home / "run-1"))]
    return logs.of_stage(logs.sources(Folder(home), runs, made), stage)


async def read(home: Path, stage: str | None = None, tail: int | None = None) -> str:
    return await OVER.ending(sources(home, stage), tail)


async def test_the_whole_log_is_the_runs_and_each_stages_in_order(home: Path) -> None:
    text = await read(home)
    heads = [line for line in text.splitlines() if line.startswith("== ")]
    assert heads == [
        "== run 1: stdout.log",
        "== PREPARE_DATA: run 1, attempt 1, succeeded",
        "== FINE_TUNE: run 1, attempt 1, running",
        "== EVALUATE: run 1, attempt 1, submitted",
    ]
    assert "Prepared 12 rows\n== FINE_TUNE" in text


async def test_one_stage_and_the_end_of_it(home: Path) -> None:
    assert await read(home, stage="fine_tune", tail=2) == "step 9\nstep 10\n"


async def test_the_end_of_everything_reaches_over_its_parts(home: Path) -> None:
    whole = await read(home)
    for tail in (1, 2, 12, 13, 14, 15, 99):
        assert await read(home, tail=tail) == "".join(whole.splitlines(keepends=True)[-tail:])


async def test_a_stage_that_is_not_there_is_told_with_those_that_are(home: Path) -> None:
    with pytest.raises(NotFound, match="it has PREPARE_DATA, FINE_TUNE, EVALUATE"):
        await read(home, stage="../../etc/passwd")


async def test_a_link_that_leads_out_of_the_jobs_folder_is_not_followed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (home / "work/aa/.command.log").unlink()
    (home / "work/aa/.command.log").symlink_to(tmp_path / "secret")
    assert "secret" not in await read(home)


async def test_a_stage_whose_folder_lies_elsewhere_is_not_read(home: Path, tmp_path: Path) -> None:
    (tmp_path / ".command.log").write_text("secret", encoding="utf-8")
    stage = Stage(process="X", workdir=str(tmp_path), attempt=1, status="running")
    assert "secret" not in await OVER.ending(logs.sources(Folder(home), [], [(stage, 1)]), None)


async def test_a_pipe_in_place_of_a_log_holds_nobody_up(home: Path) -> None:
    (home / "work/aa/.command.log").unlink()
    os.mkfifo(home / "work/aa/.command.log")
    assert "step 10" in await read(home)


async def test_a_huge_log_is_cut_at_the_beginning_of_a_line(home: Path) -> None:
    (home / "work/bb/.command.log").write_bytes(b"x" * 99 + b"\n" + (b"y" * 99 + b"\n") * 30_000)
    text = await read(home, stage="FINE_TUNE")
    assert MAX_BYTES - 200 < len(text) <= MAX_BYTES
    assert {len(line) for line in text.splitlines()[1:]} == {99}


@pytest.mark.parametrize("tail", [None, 1, 3])
async def test_a_line_of_a_hundred_megabytes_costs_no_more_memory_than_another(home: Path, tail: int | None) -> None:
    path = home / "work/bb/.command.log"
    with path.open("wb") as file:
        file.write(b"before\n")
        file.truncate(100 << 20)  # NUL bytes, which take no room on disk
    tracemalloc.start()
    try:
        text = await read(home, stage="FINE_TUNE", tail=tail)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(text.encode()) <= MAX_BYTES
    assert taken < 40 << 20


async def test_pages_put_together_are_the_whole_log(home: Path) -> None:
    path = home / "work/bb/.command.log"
    lines = [f"line {n} {'é' * (n % 50)}\n" for n in range(400)]
    path.write_text("".join(lines), encoding="utf-8")
    pages, at = [], 0
    while (page := await RUNNING.page(File(path), at, 1000))[1] != at:
        pages.append(page[0])
        at = page[1]
    assert "".join(pages) == "".join(lines)
    assert all(page.endswith("\n") for page in pages)
    assert await RUNNING.page(File(path), 10**9) == ("", path.stat().st_size)


async def test_a_secret_is_hidden_wherever_a_page_ends(home: Path) -> None:
    path = home / "work/bb/.command.log"
    path.write_text("x" * 40 + SECRET + "y" * 40, encoding="utf-8")
    for limit in range(1, 60):
        shown, at = "", 0
        while (page := await OVER.page(File(path), at, limit))[1] != at:
            shown, at = shown + page[0], page[1]
        assert shown == "x" * 40 + "[redacted]" + "y" * 40


async def test_a_line_is_shown_once_it_is_whole(home: Path) -> None:
    path = home / "work/bb/.command.log"
    path.write_text(f"one\nhalf a {SECRET[:6]}", encoding="utf-8")
    assert await RUNNING.page(File(path), 0) == ("one\n", 4)
    assert (await OVER.page(File(path), 0))[0] == f"one\nhalf a {SECRET[:6]}"
    path.write_text("10%\r20%\r3", encoding="utf-8")
    assert (await RUNNING.page(File(path), 0))[0] == "10%\n20%\n"


async def test_what_is_followed_comes_once_and_says_where_from(home: Path) -> None:
    prepare, train = home / "work/aa/.command.log", home / "work/bb/.command.log"
    follower = Follower(tail=2)

    async def new(reader: Reader = RUNNING) -> str:
        return "".join([part.decode() async for part in follower.new(sources(home)[1:], reader)])

    assert await new() == "== FINE_TUNE: run 1, attempt 1\nstep 9\nstep 10\n"
    assert await new() == ""
    with train.open("a", encoding="utf-8") as file:
        file.write("step 11\nstep")
    assert await new() == "step 11\n"
    with prepare.open("a", encoding="utf-8") as file:
        file.write(", one left out\n")
    assert await new() == "== PREPARE_DATA: run 1, attempt 1\nPrepared 12 rows, one left out\n"
    assert await new(OVER) == "== FINE_TUNE: run 1, attempt 1\nstep"


async def test_a_long_line_is_followed_in_pieces(home: Path) -> None:
    (home / "work/bb/.command.log").write_bytes(b"y" * (3 * BLOCK + 5))
    pieces = [part async for part in Follower(tail=None).new(sources(home, "FINE_TUNE"), RUNNING)]
    assert len(b"".join(pieces)) - len("== FINE_TUNE: run 1, attempt 1\n") == 3 * BLOCK


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
