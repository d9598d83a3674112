"""A watched part: started again when it dies, ever later; given time when it is asked to end. And the signals that ask."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from app.embedded.part import Part, PartError
from app.nextflow import process
from app.nextflow.command import LABEL

LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
POLL_SECONDS = 0.02
HURRIED_POSTGRES = 3.0
TITLES = {
    "s3": "The S3 server",
    "postgres": "Postgres",
    "api": "The API",
    "worker": "The worker",
    "engine": "The engine",
}


class Stop(Exception):
    """A signal asked this process to end."""


@dataclass
class Watched:
    """A part, how it is started, and how often it died of late."""

    name: str
    start: Callable[[], Part]
    part: Part
    deaths: int = 0
    next_start: float | None = None


@dataclass
class Hurry:
    """Whether this process is stopping already, and whether it was asked once more: then nobody is waited for."""

    stopping: bool = False
    now: bool = False


def on_signals() -> Hurry:
    """Let INT, TERM and HUP raise `Stop` once, and after that only hurry."""
    hurry = Hurry()

    def asked(_number: int, _frame: FrameType | None) -> None:
        if hurry.stopping:
            hurry.now = True
        else:
            hurry.stopping = True
            raise Stop

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, asked)
    return hurry


def tend(watched: Watched) -> None:
    """Look after one part: note its death, and start it again when its pause is over."""
    now = time.monotonic()
    if watched.part.alive:
        if watched.deaths and now - watched.part.started > STEADY_SECONDS:
            watched.deaths = 0
    elif watched.next_start is None:
        pause = min(LONGEST_PAUSE, 0.5 * 2**watched.deaths)
        watched.deaths, watched.next_start = watched.deaths + 1, now + pause
        watched.part.kill()
        status = watched.part.process.returncode
        say(
            f"{TITLES[watched.name]} ended with status {status}; it is started again in {pause:.1f} s. Log: {watched.part.log}"
        )
    elif now >= watched.next_start:
        watched.next_start = None
        try:
            watched.part = watched.start()
        except PartError as error:
            watched.deaths, watched.next_start = watched.deaths + 1, now + LONGEST_PAUSE
            say(f"{TITLES[watched.name]} did not start: {error}")


def leave_time(each: Part, seconds: float, hurry: Hurry) -> bool:
    """Wait for a part that was asked to end; whether it did."""
    deadline = time.monotonic() + seconds
    while each.alive and not hurry.now and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return not each.alive


def finish(each: Part, grace: float, hurry: Hurry) -> None:
    """Wait for a part that was asked to end, then end its group by force."""
    if not leave_time(each, grace, hurry):
        if each.name == "postgres":  # it loses nothing either way, but the next start is quicker
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(HURRIED_POSTGRES)
        if each.alive:
            say(f"{TITLES[each.name]} did not end in time and was killed. Log: {each.log}")
    each.kill()


def left_running(runs: Path) -> dict[str, list[int]]:
    """What a worker that was killed has left: job → pids of what works below this folder."""
    found = process.labelled(LABEL, runs) if runs.is_dir() else {}
    return {job: sorted(each.pid for each in processes) for job, processes in found.items()}


def farewell(left: dict[str, list[int]]) -> str:
    """The last line: what still runs, if anything does."""
    if not left:
        return "Stopped. Nothing is left running."
    jobs = "; ".join(f"{job} (pids {' '.join(map(str, pids))})" for job, pids in sorted(left.items()))
    return f"Stopped, but the pipeline of a job goes on by itself: {jobs}. The next start takes it over, or end it with kill."


def say(line: str) -> None:
    """A line for whoever started the service."""
    print(line, flush=True)
