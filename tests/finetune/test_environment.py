"""The trainer's environment: both spellings of the keys, files before variables, secrets kept out of sight."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune import environment
from finetune.exit_codes import StepError

pytestmark = pytest.mark.unit

NAMES = [
    *environment.SECRETS,
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "LLAMAFLOW_CACHE_DIR",
]


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("key", "secret"), [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_ACCESS_KEY", "AWS_SECRET_KEY")]
)
def test_both_spellings_of_the_keys_are_read(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    monkeypatch.setenv(key, "id")
    monkeypatch.setenv(secret, "hidden")
    access = environment.s3_access()
    assert (access.access_key, access.secret_key) == ("id", "hidden")


def test_a_credentials_file_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://environment")
    file = tmp_path / "s3.env"
    file.write_text(
        "# keys\nexport AWS_ACCESS_KEY_ID='id'\nAWS_SECRET_ACCESS_KEY=a=b\nAWS_ENDPOINT_URL_S3=http://file\nHF_TOKEN=hf\n"
    )
    access = environment.s3_access(str(file))
    assert (access.access_key, access.secret_key, access.endpoint) == ("id", "a=b", "http://file")
    assert environment.hub_token(str(file)) == "hf"


def test_keys_of_the_environment_do_not_fill_up_a_credentials_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of another account")
    file = tmp_path / "s3.env"
    file.write_text("AWS_ACCESS_KEY_ID=id\n")
    with pytest.raises(StepError, match="Only one of") as caught:
        environment.s3_access(str(file))
    assert caught.value.code.name == "access_denied"


def test_a_credentials_file_that_is_not_there_is_named() -> None:
    with pytest.raises(StepError, match=r"/nowhere/s3\.env cannot be read"):
        environment.s3_access("/nowhere/s3.env")


def test_no_repr_shows_a_secret() -> None:
    assert "hidden" not in repr(environment.S3Access(access_key="hidden", secret_key="hidden", session_token="hidden"))


def test_a_child_gets_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.SECRETS:
        monkeypatch.setenv(name, "canary")
    child = environment.for_child({"MORE": "1"})
    assert "canary" not in child.values()
    assert child["MORE"] == "1"
    assert "PATH" in child


def test_the_cache_is_what_the_step_file_names_else_the_environment_else_below_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert environment.cache_dir() == Path("~/.cache/llamaflow").expanduser()
    monkeypatch.setenv("LLAMAFLOW_CACHE_DIR", "/elsewhere")
    assert environment.cache_dir() == Path("/elsewhere")
    assert environment.cache_dir("/given") == Path("/given")
