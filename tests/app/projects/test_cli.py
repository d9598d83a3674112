"""`llamaflow projects` and `llamaflow keys` as an operator types them: a key is shown once, works at once, and ends when it is revoked."""

from __future__ import annotations

import httpx
import psycopg
import pytest
from click.testing import CliRunner, Result

from app.auth import key_hash
from app.cli import main
from app.embedded.postgres import PostgresServer
from app.settings import get_settings
from tests.app.conftest import Service

pytestmark = pytest.mark.db

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def run(service: Service, monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs the command line against the service's database."""
    assert service.settings.database_url is not None
    monkeypatch.setenv("LLAMAFLOW_DATABASE_URL", service.settings.database_url.get_secret_value())
    get_settings.cache_clear()

    def typed(*words: str) -> Result:
        return CliRunner().invoke(main, list(words))

    yield typed
    get_settings.cache_clear()


def status(service: Service, key: str, path: str = JOBS) -> int:
    return httpx.get(service.url + path, headers={"authorization": f"Bearer {key}"}, trust_env=False).status_code


def test_a_project_gets_keys_which_work_until_they_are_revoked(
    run: object, service: Service, api_postgres: PostgresServer
) -> None:
    assert callable(run)
    made = run("projects", "create", "delta", "--path-allow", "s3://llamaflow-data/delta/")
    assert made.exit_code == 0, made.output
    made = run("keys", "create", "--project", "delta", "--name", "n8n", "--scope", "read")
    key = made.stdout.strip()
    assert key.startswith("lf-")
    assert "not shown again" in made.stderr
    assert status(service, key) == 200
    listed = run("keys", "list", "--project", "delta").output
    (key_id,) = [word for word in listed.split() if word.startswith("key_")]
    assert key not in listed
    assert "valid" in listed
    assert run("keys", "revoke", key_id).exit_code == 0
    assert status(service, key) == 401
    assert "revoked" in run("keys", "list").output
    with psycopg.connect(api_postgres.url) as connection:
        project = "select path_allow, secret from projects join signing_secrets on project_id = projects.id where name = 'delta'"
        ((paths, secret),) = connection.execute(project).fetchall()
        kept = connection.execute("select hash from api_keys where id = %s", [key_id]).fetchall()
    assert (paths, secret[:6], kept) == (["s3://llamaflow-data/delta/"], "whsec_", [(key_hash(key),)])


def test_the_paths_of_a_project_are_changed_and_shown(run: object) -> None:
    assert callable(run)
    run("projects", "create", "echo")
    assert "LLAMAFLOW_PATH_ALLOW" in run("projects", "list").output.partition("echo")[2].splitlines()[0]
    assert run("projects", "set", "echo", "--path-allow", "s3://own/a/", "--path-allow", "s3://own/b/").exit_code == 0
    assert "echo  s3://own/a/, s3://own/b/" in run("projects", "list").output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("projects", "create", "Über:x"), "1 to 40 of a-z"),
        (("projects", "create", "alpha"), "already"),
        (("projects", "create", "foxtrot", "--path-allow", "/etc"), "no S3 prefix"),
        (("keys", "create", "--project", "alhpa"), "did you mean 'alpha'?"),
        (("keys", "create", "--project", "alpha", "--scope", "root"), "Scopes are read, write, admin"),
        (("keys", "revoke", "key_none"), "keys list"),
    ],
)
def test_a_mistake_is_one_sentence(run: object, words: tuple[str, ...], said: str) -> None:
    assert callable(run)
    done = run(*words)
    assert done.exit_code == 1
    assert said in done.output
    assert "Traceback" not in done.output


def test_without_a_database_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("LLAMAFLOW_DATABASE_URL", raising=False)
    monkeypatch.setenv("LLAMAFLOW_STATE_DIR", str(tmp_path))
    get_settings.cache_clear()
    done = CliRunner().invoke(main, ["keys", "list"])
    get_settings.cache_clear()
    assert done.exit_code == 1
    assert "LLAMAFLOW_DATABASE_URL is not set" in done.output
