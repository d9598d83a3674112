"""Chaos, drawn from a seed: see machine.py. A short one here, five minutes in `make test-slow`, as long as wanted by `make chaos`."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from pydantic import SecretStr

import migrations
from app.db import Database
from app.nextflow import install
from app.settings import Settings
from tests.app.conftest import serving
from tests.app.worker.receiver import receiving
from tests.app.worker.services import ROWS, World
from tests.fault import head
from tests.fault.machine import KEY, Service, Surroundings
from tests.fault.servers import Servers

pytestmark = pytest.mark.fault

SEED = 2
"""Of those that end soon one that takes both servers away."""


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Surroundings]:
    """A Postgres and an S3 server of its own, the API, a receiver."""
    for name, value in {"SECONDS": "1.5", "UPLOAD": "1"}.items():
        monkeypatch.setenv(f"LLAMAFLOW_STUB_{name}", value)
    servers = Servers(tmp_path / "servers", install.ensure(Settings().tools))
    migrations.upgrade(servers.postgres.url)
    with receiving() as receiver:
        own = Settings(
            state_dir=tmp_path, tools_dir=Settings().tools, database_url=SecretStr(servers.postgres.url), poll_seconds=0.2,
            lease_seconds=3.0, heartbeat_seconds=0.5, stub_run=True, s3_endpoint=servers.s3.endpoint, worker_slots=2,
            s3_access_key=SecretStr(servers.s3.access_key), s3_secret_key=SecretStr(servers.s3.secret_key),
            nextflow=head.install(tmp_path), webhook_allow=receiver.allow,
            task_env=["LLAMAFLOW_STUB_SECONDS", "LLAMAFLOW_STUB_UPLOAD"],
        )  # fmt: skip
        World(own, Database.from_settings(own)).put(
            "train.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        )
        with serving(own) as url:
            headers = {"authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
                yield Surroundings(own, servers, http, receiver)
    servers.stop()


def play(around: Surroundings, number: int, *, examples: int, steps: int) -> None:
    """Examples from one seed; a failure tells the seed and what was done."""
    made = type("Seeded", (Service,), {"around": around})
    how = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    print(f"seed {number}", end=": ", flush=True)
    try:
        run_state_machine_as_test(seed(number)(made), settings=how)
    except BaseException:
        print(
            f"failed with seed {number} (make chaos SEED={number}), after:\n  " + "\n  ".join(around.told), flush=True
        )
        raise
    print(", ".join(around.told), flush=True)


def test_whatever_is_asked_and_whatever_dies_the_audit_holds(around: Surroundings) -> None:
    play(around, SEED, examples=1, steps=8)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_chaos(around: Surroundings) -> None:
    first = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 32))
    until = time.monotonic() + 60 * float(os.environ.get("CHAOS_MINUTES") or 5)
    rounds, kinds = 0, set[str]()
    while rounds == 0 or time.monotonic() < until:
        play(around, first + rounds, examples=1, steps=20)
        kinds |= {what.partition(" ")[0] for what in around.told}
        rounds += 1
    assert rounds < 5 or len(kinds) > 6, f"the seeds say nothing, only this was ever done: {kinds}"
    print(f"{rounds} rounds from seed {first}")
