"""Canaries in every place where the service keeps a secret: none is seen outside of it, in no process, file, row, log, callback or answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import quote, urlsplit

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app.models import Run, Table
from app.nextflow import process
from app.worker import folder
from app.worker.launch import label
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import World, environment, until
from tests.fault.doors import HUB, JOBS, ROW, doors, make_project
from tests.fault.scene import Behave

pytestmark = pytest.mark.fault

KEPT = {"credentials": ["s3"], "fetch-credentials": ["hub", "s3"]}
"""The only files of a job that hold a secret, while it runs, and which."""


@dataclass
class Canaries:
    """Secrets by name, and where each was seen although it must not be."""

    known: dict[str, str]
    environments: dict[str, bytes] = field(default_factory=dict)

    def seen(self, content: bytes) -> list[str]:
        """Names of the canaries in `content`, as they are or as an address quotes them."""
        forms = {name: {value.encode(), quote(value, safe="").encode()} for name, value in self.known.items()}
        return [name for name, spelled in forms.items() if any(form in content for form in spelled)]


@pytest.fixture
def canaries(stored: World) -> Canaries:
    made = {name: f"canary-{name}-{secrets.token_hex(12)}" for name in ("engine", "cli", "other", "session")}
    made |= {"hub": f"hf_{secrets.token_hex(16)}", "key": f"lf-{secrets.token_urlsafe(32)}"}
    secret_key, database = stored.settings.s3_secret_key, stored.settings.database_url
    assert secret_key is not None
    assert database is not None
    made |= {"s3": secret_key.get_secret_value(), "database": str(urlsplit(database.get_secret_value()).password)}
    stored.settings = stored.settings.model_copy(
        update={"hf_token": SecretStr(made["hub"]), "engine_token": SecretStr(made["engine"]), "engine_url": "http://127.0.0.1:9"}
    )  # fmt: skip
    return Canaries(made)


def start_worker(world: World, canaries: Canaries, log: IO[bytes]) -> subprocess.Popen[bytes]:
    env = environment(world.settings) | {
        "HF_TOKEN": canaries.known["hub"], "LLAMAFLOW_ENGINE_TOKEN": canaries.known["engine"],
        "LLAMAFLOW_API_KEY": canaries.known["cli"], "SOME_OTHER_SECRET": canaries.known["other"],
        "LLAMAFLOW_LOG_LEVEL": "DEBUG",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "app.worker"], env=env, stdout=log, stderr=log)


async def watch(canaries: Canaries, job_id: str) -> None:
    """Look at the environment and the words of every process of the job's run, again and again."""
    while True:
        await asyncio.to_thread(look, canaries, job_id)
        await asyncio.sleep(0.3)


def look(canaries: Canaries, job_id: str) -> None:
    for member in process.members(label(job_id)):
        with contextlib.suppress(OSError):
            home = Path(f"/proc/{member.pid}")
            words = (home / "cmdline").read_bytes()
            canaries.environments[words.decode(errors="replace")] = words + (home / "environ").read_bytes()


def files_with(canaries: Canaries, below: Path) -> dict[str, list[str]]:
    """Files in which a canary is, by name, with which."""
    found = {
        path: canaries.seen(path.read_bytes()) for path in below.rglob("*") if path.is_file() and not path.is_symlink()
    }
    return {str(path.relative_to(below)): names for path, names in found.items() if names}


async def rows_with(world: World, canaries: Canaries) -> list[tuple[str, list[str]]]:
    """Rows in which a canary is."""
    found = []
    async with world.database.transaction() as db:
        for table in Table.metadata.sorted_tables:
            rows = (await db.execute(text(f"select t::text from {table.name} t"))).scalars().all()
            found += [(table.name, names) for row in rows if (names := canaries.seen(row.encode()))]
    return found


async def answers(http: httpx.AsyncClient, job_id: str) -> bytes:
    """Everything the API says of a job, and of a few mistakes."""
    paths = [
        f"{JOBS}/{job_id}{rest}"
        for rest in ("", "/events?limit=1000", "/stages", "/checkpoints", "/logs", "/logs?stage=FINE_TUNE")
    ]
    said = [
        await http.get(path)
        for path in (*paths, JOBS, "/v1/files", "/v1/models", "/v1/adapters", "/readyz", "/openapi.json")
    ]
    chat = {"model": HUB, "messages": [{"role": "user", "content": "x"}]}
    said.append(await http.post("/v1/chat/completions", json=chat))
    said.append(await http.post(JOBS, json={"model": HUB, "training_file": "s3://llamaflow-data/none.jsonl"}))
    said.append(await http.get("/v1/files/%00"))
    codes = {answer.status_code for answer in said}
    assert {200, 400, 503} <= codes <= {200, 400, 404, 503}  # a stage that never began has no log
    return b"".join(answer.content + str(answer.headers).encode() for answer in said)


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        ("", "succeeded"),
        pytest.param("train=loss_diverged", "failed", marks=pytest.mark.slow),
        pytest.param("fetch=model_gated", "failed", marks=pytest.mark.slow),
        pytest.param("upload=s3_unavailable:once", "succeeded", marks=pytest.mark.slow),
    ],
)
async def test_no_secret_is_seen_outside_of_the_service(
    stored: World,
    canaries: Canaries,
    stub_tasks: Behave,
    receiver: Receiver,
    tmp_path_factory: pytest.TempPathFactory,
    fault: str,
    ends: str,
) -> None:
    stub_tasks(seconds="2", **({"fault": fault} if fault else {}))
    await make_project(stored, "canaries", canaries.known["key"])
    output = tmp_path_factory.mktemp("output") / "worker.log"
    async with doors(stored, canaries.known["key"]) as (http,):
        file = await http.post("/v1/files", files={"file": ("t.jsonl", ROW * 12)}, data={"purpose": "fine-tune"})
        body = {"model": HUB, "training_file": file.json()["id"], "suffix": "canary", "callback_url": receiver.url}
        job_id = (await http.post(JOBS, json=body)).json()["id"]
        watching = asyncio.create_task(watch(canaries, job_id))
        with output.open("wb") as log:
            worker = start_worker(stored, canaries, log)
            try:
                root = folder.of(stored.settings, job_id).root
                await until(lambda: begun(stored), 120)
                assert files_with(canaries, root) == KEPT
                assert {stat.S_IMODE((root / name).stat().st_mode) for name in KEPT} == {0o600}
                job = await until(lambda: stored.is_over(job_id), 200)
                await until(lambda: told(receiver), 30)
            finally:
                worker.terminate()
                await asyncio.to_thread(worker.wait)
                watching.cancel()
        said = await answers(http, job_id)
    assert job.status == ends
    words = " ".join(canaries.environments)
    assert "java" in words
    assert fault or all(f"finetune.stub\0{step}" in words for step in ("download", "train", "evaluate", "upload"))
    assert [name for name, content in canaries.environments.items() if canaries.seen(content)] == []
    assert files_with(canaries, root) == {}
    assert not any((root / name).exists() for name in KEPT)
    assert await rows_with(stored, canaries) == []
    assert output.stat().st_size > 0
    assert canaries.seen(output.read_bytes()) == []
    assert canaries.seen(said) == []
    assert receiver.received
    assert canaries.seen(b"".join(got.body + json.dumps(got.headers).encode() for got in receiver.received)) == []


async def told(receiver: Receiver) -> bool:
    return bool(receiver.received)


async def begun(world: World) -> bool:
    return bool(await world.rows(Run))
