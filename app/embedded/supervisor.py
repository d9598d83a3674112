"""`llamaflow up`: starts Postgres, S3 server, API, worker and inference engine, keeps them running, stops them all.

One thread, no database, no HTTP served. A part that dies is started again, ever later. Ctrl-C: the worker lets running
trainings save and stop, then everything ends. After kill -9 of this process the parts end by themselves or are ended by
the next start. Whoever set LLAMAFLOW_DATABASE_URL, AWS_ENDPOINT_URL_S3 or LLAMAFLOW_ENGINE_URL keeps that part of theirs.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.embedded import engine, folder, part, s3
from app.embedded.environment import for_part
from app.embedded.part import Part, PartError
from app.embedded.postgres import start_postgres
from app.embedded.watch import (
    TITLES,
    Hurry,
    Stop,
    Watched,
    farewell,
    finish,
    leave_time,
    left_running,
    on_signals,
    say,
    tend,
)
from app.nextflow import install
from app.nextflow.jars import InstallError
from app.settings import Settings

READY_SECONDS = 90.0
PREPARE_SECONDS = 120.0
WATCH_SECONDS = 0.2
GIVE_UP_AFTER = 3
OTHER_SECONDS = 20.0
QUIET_STOP = 1.5
GRACE = {"worker": 75.0, "api": 15.0, "engine": 10.0, "s3": 10.0, "postgres": 30.0}
"""Seconds a part gets to end. The worker's are for trainings to reach the end of a step and save."""


@dataclass
class Service:
    """What has been started so far.

    Attributes:
        settings: With what was started filled in: database, S3, engine, port.
        state: The state folder.
        watched: By name.
    """

    settings: Settings
    state: Path
    watched: dict[str, Watched] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Where the API answers from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)  # noqa: S104 - compared
        return f"http://{host}:{self.settings.port}"

    def watch(self, name: str, start: Callable[[], Part]) -> None:
        """Start a part and keep it."""
        self.watched[name] = Watched(name, start, start())


def main(settings: Settings) -> int:
    """Run the embedded service until a signal.

    Returns:
        0 after a signal; 1 if it could not start, with a sentence on stderr.
    """
    hurry, service = on_signals(), None
    state = folder.prepare(settings.state_dir)
    try:
        with _only_one(state):
            service = Service(settings.model_copy(update={"state_dir": state}), state)
            try:
                _start(service)
                _watch(service)
            finally:
                hurry.stopping = True
                (state / "up.json").unlink(missing_ok=True)
                _stop(service, hurry)
    except (Stop, KeyboardInterrupt):
        say(farewell(left_running(service.settings.runs) if service else {}))
        return 0
    except (PartError, InstallError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


@contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Hold the state folder; the kernel frees it when this process dies. One that is starting or stopping is waited for."""
    with (state / "up.lock").open("a", encoding="utf-8") as lock:
        deadline = time.monotonic() + OTHER_SECONDS
        while not _locked(lock):
            told = folder.read_json(state / "up.json")
            if told or time.monotonic() > deadline:
                raise PartError(
                    f"LlamaFlow already runs on {state} ({told.get('url', 'starting or stopping')}, pid {told.get('pid', '?')}). "
                    "Stop it first, or name another folder: LLAMAFLOW_STATE_DIR=… LLAMAFLOW_PORT=0"
                )
            time.sleep(WATCH_SECONDS)
        (state / "up.json").unlink(missing_ok=True)
        try:
            yield
        finally:
            (state / "up.json").unlink(missing_ok=True)


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(service: Service) -> None:
    began = time.monotonic()
    _take_port(service)
    server = _launch_s3(service) if _is_ours(service) else None
    if service.settings.database_url is None:
        _start_postgres(service)
    if server is not None:
        s3.wait_for_s3(server)
    _prepare(service)
    _start_own(service)
    _wait_ready(service)
    _banner(service, time.monotonic() - began)


def _launch_s3(service: Service) -> s3.S3Server:
    """Start the S3 server, to be started again on the same port: the other parts know it by that."""
    tools = install.ensure(service.settings.tools, report=say)
    server = s3.launch_s3(service.state, tools)
    port = urlsplit(server.endpoint).port
    service.watched["s3"] = Watched("s3", lambda: s3.launch_s3(service.state, tools, port).part, server.part)
    service.settings = _with_s3(service.settings, server)
    say(f"S3 server on {server.endpoint}")
    return server


def _start_postgres(service: Service) -> None:
    """Start Postgres, to be started again on the same port."""
    server = start_postgres(service.state)
    service.watched["postgres"] = Watched(
        "postgres", lambda: start_postgres(service.state, server.port).part, server.part
    )
    service.settings = service.settings.model_copy(update={"database_url": SecretStr(server.url)})
    say(f"Postgres on port {server.port}")


def _with_s3(settings: Settings, server: s3.S3Server) -> Settings:
    return settings.model_copy(
        update={
            "s3_endpoint": server.endpoint,
            "s3_region": s3.REGION,
            "s3_access_key": SecretStr(server.access_key),
            "s3_secret_key": SecretStr(server.secret_key),
            "s3_session_token": None,
        }
    )


def _take_port(service: Service) -> None:
    settings = service.settings
    if settings.port == 0:
        service.settings = settings.model_copy(update={"port": folder.free_port(settings.host)})
    elif not folder.is_free(settings.port, settings.host):
        raise PartError(
            f"Port {settings.port} on {settings.host} is in use by another program. Stop that one, or choose another port: "
            "LLAMAFLOW_PORT=8080 (0 takes a free one)."
        )


def _is_ours(service: Service) -> bool:
    """Whether S3 is the embedded server: nothing else was named, or a shell that read our own s3.env named it."""
    named = service.settings.s3_endpoint
    kept = s3.read_env(service.state).get("AWS_ENDPOINT_URL_S3")
    return named is None or named == kept


def _prepare(service: Service) -> None:
    log = service.state / "logs" / "prepare.log"
    argv = [sys.executable, "-m", "app.embedded.prepare"]
    made = part.start("prepare", argv, state=service.state, env=for_part(service.settings))
    try:
        status = made.process.wait(PREPARE_SECONDS)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        made.kill()
    if status != 0:
        raise PartError(f"The database could not be brought to the newest schema; the log is {log}:\n{made.tail()}")


def _start_own(service: Service) -> None:
    """API, worker, engine: they get the settings as completed by now."""
    if service.settings.engine_url is None:
        service.settings = service.settings.model_copy(
            update={
                "engine_url": f"http://{folder.LOOPBACK}:{folder.free_port()}",
                "engine_token": SecretStr(secrets.token_urlsafe(32)),
            }
        )
        service.watch("engine", lambda: _own(service, "engine", engine.command(str(service.settings.engine_url))))
    settings = service.settings
    serve = [part.CLI, "serve", "--host", settings.host, "--port", str(settings.port)]
    service.watch("api", lambda: _own(service, "api", serve))
    if settings.worker_slots != 0:
        service.watch("worker", lambda: _own(service, "worker", [part.CLI, "worker"], signal.SIGINT))


def _own(service: Service, name: str, argv: list[str], stop_signal: signal.Signals = signal.SIGTERM) -> Part:
    """A part of ours. When the supervisor is killed the worker gets TERM: it lets go, and runs go on to be adopted."""
    folders = {
        "LLAMAFLOW_CACHE_DIR": str(service.settings.cache),
        "LLAMAFLOW_RUNS_DIR": str(service.settings.runs),
        "LLAMAFLOW_TOOLS_DIR": str(service.settings.tools),
    }
    env = for_part(service.settings, folders)
    return part.start(name, argv, state=service.state, env=env, stop_signal=stop_signal, death_signal=signal.SIGTERM)


def _wait_ready(service: Service) -> None:
    """Wait until the API, the engine and the worker are up.

    Raises:
        PartError: One of them ended again and again, or does not answer.
    """
    deadline = time.monotonic() + READY_SECONDS
    waiting = {"api": f"{service.url}/readyz"}
    if "engine" in service.watched:
        waiting["engine"] = f"{service.settings.engine_url}/healthz"
    while waiting:
        waiting = {name: url for name, url in waiting.items() if not _answers(url, service.settings)}
        for watched in service.watched.values():
            tend(watched)
            if watched.deaths >= GIVE_UP_AFTER or (waiting and time.monotonic() > deadline and watched.name in waiting):
                raise PartError(
                    f"{TITLES[watched.name]} does not start; its log is {watched.part.log}:\n{watched.part.tail()}"
                )
        time.sleep(WATCH_SECONDS / 2)


def _answers(url: str, settings: Settings) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=5)
    token = settings.engine_token
    try:
        connection.request(
            "GET", parts.path, headers={"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        )
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _watch(service: Service) -> None:
    """Start again what dies, until a signal."""
    while True:
        for watched in service.watched.values():
            tend(watched)
        time.sleep(WATCH_SECONDS)


def _stop(service: Service, hurry: Hurry) -> None:
    """Stop every part, those that use others first; the second Ctrl-C waits for nobody."""
    worker = service.watched.get("worker")
    if worker is not None and worker.part.alive:
        worker.part.ask()
        if not leave_time(worker.part, QUIET_STOP, hurry):
            say(
                "Stopping: a running training saves its checkpoint and goes on with the next start. Ctrl-C again does not wait."
            )
        finish(worker.part, GRACE["worker"], hurry)
    for group in (("api", "engine"), ("s3", "postgres")):
        parts = [service.watched[name].part for name in group if name in service.watched]
        for each in parts:
            each.ask()
        for each in parts:
            finish(each, GRACE[each.name], hurry)


def _banner(service: Service, seconds: float) -> None:
    here = os.path.relpath(service.state)
    lines = [
        f"LlamaFlow is ready after {seconds:.1f} s.",
        f"  API         {service.url}    Swagger UI {service.url}/docs",
        f"  API key     {here}/api_key",
    ]
    if "s3" in service.watched:
        lines.append(f"  S3          {service.settings.s3_endpoint}    credentials {here}/s3.env")
    lines += [f"  Webhooks    secret {here}/webhook_secret", f"  Logs        {here}/logs/", "Ctrl-C stops it."]
    say("\n".join(lines))
    told = {
        "pid": os.getpid(),
        "url": service.url,
        "state_dir": str(service.state),
        "s3_endpoint": service.settings.s3_endpoint,
        "database_url": service.settings.database_url.get_secret_value() if service.settings.database_url else None,
    }
    folder.write_secret(service.state / "up.json", json.dumps(told) + "\n")
