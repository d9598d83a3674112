"""Settings reach the parts as the variables they are read from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.embedded.environment import as_variables, for_part
from app.settings import Settings

pytestmark = pytest.mark.unit


def test_a_part_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = Settings(
        state_dir=tmp_path,
        port=8123,
        database_url=SecretStr("postgresql://u:p@h/d"),
        s3_endpoint="http://127.0.0.1:9",
        s3_access_key=SecretStr("key"),
        webhook_allow=["127.0.0.1:1", "10.0.0.1:2"],
        worker_slots=3,
        stub_run=True,
    )
    for name, value in as_variables(given).items():
        monkeypatch.setenv(name, value)
    assert Settings() == given


def test_the_environment_of_a_part_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_BANK_PASSWORD", "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    made = for_part(Settings(), {"LLAMAFLOW_PORT": "1"})
    assert "canary" not in made.values()
    assert made["HTTPS_PROXY"] == "http://proxy:3128"
    assert made["LLAMAFLOW_PORT"] == "1"
