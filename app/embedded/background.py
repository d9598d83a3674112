"""The embedded service as a child of the demo or of tests: started, waited for, stopped.

    running = start(settings, {"LLAMAFLOW_PORT": "0"}, report=print)
    running.url, running.api_key, running.s3_endpoint
    running.stop()

It is `llamaflow up` in a process of its own, and ends when its parent dies.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.embedded import folder, part, s3
from app.embedded.environment import for_part
from app.embedded.part import Part
from app.settings import Settings

START_SECONDS = 900.0
"""Long, because the first start may fetch the Java parts."""
STOP_SECONDS = 150.0
POLL_SECONDS = 0.1


class StartError(RuntimeError):
    """The service did not start; says why, and where its log is."""


@dataclass
class Running:
    """A running service.

    Attributes:
        url: Of the API, without /v1.
        api_key: With every scope, of the project `default`.
        webhook_secret: `whsec_…` of that project.
        part: The supervisor's process.
    """

    url: str
    state_dir: Path
    api_key: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    s3_endpoint: str
    s3_access_key: str = field(repr=False)
    s3_secret_key: str = field(repr=False)
    database_url: str = field(repr=False)
    part: Part

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.part.process.pid

    def stop(self) -> None:
        """Ctrl-C, and wait until nothing is left running.

        Raises:
            StartError: It did not end in time and was killed.
        """
        try:
            clean = self.part.stop(STOP_SECONDS)
        except KeyboardInterrupt:  # asked again: it hurries
            clean = self.part.stop(STOP_SECONDS)
        if not clean:
            raise StartError(f"The service did not stop within {STOP_SECONDS:.0f} s; see {self.part.log}.")

    def kill(self) -> None:
        """kill -9 of the supervisor alone, as a fault."""
        self.part.process.kill()
        self.part.process.wait()


def start(
    settings: Settings, variables: dict[str, str] | None = None, report: Callable[[str], None] = lambda _line: None
) -> Running:
    """Start the embedded service and wait until it is ready.

    Args:
        settings: Its settings.
        variables: LLAMAFLOW_… variables on top of them.
        report: Called with each line the supervisor prints.
    Raises:
        StartError: With the supervisor's own sentence.
    """
    state = folder.prepare(settings.state_dir)
    env = for_part(settings.model_copy(update={"state_dir": state}), variables)
    argv = [part.CLI, "up"]
    log = state / "logs" / "up.log"
    read = log.stat().st_size if log.exists() else 0
    supervisor = part.start("up", argv, state=state, env=env, stop_signal=signal.SIGINT, instead=False)
    told: dict[str, Any] = {}
    try:
        deadline = time.monotonic() + START_SECONDS
        while told.get("pid") != supervisor.process.pid:
            read = _report(log, read, report)
            if not supervisor.alive or time.monotonic() > deadline:
                raise StartError(_why(supervisor))
            time.sleep(POLL_SECONDS)
            told = folder.read_json(state / "up.json")
    except BaseException:
        supervisor.stop(STOP_SECONDS)
        raise
    return _running(state, told, supervisor, env)


def _running(state: Path, told: dict[str, Any], supervisor: Part, env: dict[str, str]) -> Running:
    kept = (
        s3.read_env(state) | env
        if told["s3_endpoint"] != s3.read_env(state).get("AWS_ENDPOINT_URL_S3")
        else s3.read_env(state)
    )
    return Running(
        url=told["url"],
        state_dir=state,
        api_key=(state / "api_key").read_text(encoding="utf-8").strip(),
        webhook_secret=(state / "webhook_secret").read_text(encoding="utf-8").strip(),
        s3_endpoint=told["s3_endpoint"],
        s3_access_key=kept.get("AWS_ACCESS_KEY_ID", ""),
        s3_secret_key=kept.get("AWS_SECRET_ACCESS_KEY", ""),
        database_url=told["database_url"],
        part=supervisor,
    )


def _why(supervisor: Part) -> str:
    """The supervisor's own sentence, from the end of its log."""
    if supervisor.alive:
        return f"The service was not ready within {START_SECONDS:.0f} s; its log is {supervisor.log}."
    _, error, sentence = supervisor.tail(60).rpartition("error: ")
    return sentence if error else f"The service ended at once; its log is {supervisor.log}:\n{supervisor.tail()}"


def _report(log: Path, read: int, report: Callable[[str], None]) -> int:
    """Report the whole lines written since `read`; how far the log is read now."""
    try:
        with log.open("rb") as file:
            file.seek(min(read, log.stat().st_size))
            new = file.read()
    except FileNotFoundError:
        return read
    whole, _, _ = new.rpartition(b"\n")
    for line in whole.decode(errors="replace").splitlines():
        report(line)
    return read + len(whole) + bool(whole)
