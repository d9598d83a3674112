"""The real trainer without a shared disk: killed and taken up elsewhere it gives the bytes of a training nothing happened to."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from finetune.config import Lora
from tests.app.conftest import Service, until
from tests.app.runs.conftest import Task
from tests.finetune.train.conftest import Bench, base, bench, exact, reaped

__all__ = ["base", "bench", "exact", "reaped"]

pytestmark = [pytest.mark.train, pytest.mark.slow, pytest.mark.timeout(1200)]

Tasks = Callable[..., Awaitable[Task]]


def names(task: Task) -> set[str]:
    """Names in the mirror's record."""
    record = task.ask("GET", "/mirror").json()["mirror"]
    return {entry["path"] for entry in record["files"]} if record else set()


async def test_killed_and_taken_up_in_another_folder_it_gives_the_undisturbed_bytes(
    tasks: Tasks,
    service: Service,
    bench: Callable[..., Bench],
    reaped: list[subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service.settings, "train_lease_seconds", 2.0)
    task = await tasks()
    made = bench(lora=Lora(r=4, dropout=0.1), n_epochs=50, batch_size=4, save_steps=7, eval_steps=100)
    await asyncio.to_thread(made.train, "undisturbed")
    (tmp_path / "access.json").write_text(json.dumps({"url": service.url, "token": task.token}))
    made.inputs["access"] = tmp_path / "access.json"
    reaped.append(first := made.start("first"))
    await until(lambda: any(name.startswith("checkpoint-") for name in names(task)), 900)
    first.kill()
    await asyncio.to_thread(made.train, "elsewhere")
    lines = [json.loads(line) for line in task.ask("GET", "/lines").json()["text"].splitlines()]
    first_start, second_start = (line for line in lines if line["event"] == "start")
    assert first_start["resumed_from"] is None
    assert second_start["resumed_from"] % 7 == 0
    assert 7 <= second_start["resumed_from"] < 200
    assert made.weights("elsewhere") == made.weights("undisturbed")
    assert "result.json" in names(task)
