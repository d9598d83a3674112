"""A real training of a tiny model, paused and taken up, or cancelled and retried: the weights are those of the undisturbed one."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from app.worker import folder
from tests.app.worker.services import World
from tests.fault.asking import Asks, asking, project
from tests.fault.audit import audit, lines_of
from tests.finetune.train.conftest import QUIET, build_base, chat

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1500)]

TOTAL = 480
BODY: dict[str, Any] = {
    "model": "tiny",
    "training_file": "s3://llamaflow-data/weights.jsonl",
    "seed": 7,
    "hyperparameters": {"n_epochs": 40, "batch_size": 2, "learning_rate": 0.01, "save_steps": 1000},
    "lora": {"r": 4, "dropout": 0.1},
}
"""480 steps, with dropout, so that random numbers matter; a checkpoint only where one is asked for."""


@pytest_asyncio.fixture
async def asks(stored: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asks]:
    """The API of a world whose tasks really train, on one thread of the CPU, where equal bytes are promised."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    base = build_base(tmp_path / "base")
    models = tmp_path / "models.toml"
    models.write_text(f'[models."tiny"]\nsource = "path"\nlocation = "{base}"\n')
    rows = [chat(f"q{n}" + "?" * (n % 7), f"a{n}" * (1 + n % 4)) for n in range(24)]
    stored.put("weights.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    changes = {"stub_run": False, "task_env": list(QUIET), "models_file": models}
    stored.settings = stored.settings.model_copy(update=changes)
    await project(stored)
    async with asking(stored) as made:
        yield made


async def create(asks: Asks, **fields: Any) -> str:
    answer = await asks.http.post("/v1/fine_tuning/jobs", json=BODY | fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def weights(world: World, job_id: str) -> bytes:
    """The adapter as it lies on S3."""
    return world.content(f"model/{job_id}/adapter/adapter_model.safetensors")


def starts(world: World, job_id: str) -> list[int | None]:
    """From which steps the training went on, each time it was started."""
    lines = lines_of(folder.of(world.settings, job_id).train / "progress.jsonl")
    return [line["resumed_from"] for line in lines if line["event"] == "start"]


def reached(world: World, job_id: str) -> int:
    """The step a training has come to."""
    lines = lines_of(folder.of(world.settings, job_id).train / "progress.jsonl")
    return max((line["step"] for line in lines if line["event"] == "step"), default=0)


async def test_paused_at_some_step_and_resumed_it_gives_the_unpaused_weights(stored: World, asks: Asks) -> None:
    dice = random.Random(11)
    paused = await create(asks)
    async with stored.working():
        for _ in range(2):
            await asks.steps(paused, reached(stored, paused) + dice.randrange(1, 60), seconds=400)
            await asks.status(paused, "pause")
            await asks.becomes(paused, "paused", seconds=120)
            await asks.status(paused, "resume")
        unpaused = await create(asks)
        await audit(stored, paused, unpaused, seconds=400)
    first, *resumed = starts(stored, paused)
    assert first is None
    assert len(resumed) == 2
    assert all(step is not None and 0 < step < TOTAL for step in resumed)
    assert starts(stored, unpaused) == [None]
    assert weights(stored, paused) == weights(stored, unpaused)


async def test_cancelled_and_retried_it_gives_the_undisturbed_weights(stored: World, asks: Asks) -> None:
    often = {"hyperparameters": BODY["hyperparameters"] | {"save_steps": 15}}
    cancelled = await create(asks, **often)
    async with stored.working():
        await asks.steps(cancelled, 40, seconds=400)
        await asks.status(cancelled, "cancel")
        await audit(stored, cancelled, ends=("cancelled",), seconds=400)
        retried = (await asks(cancelled, "retry")).json()["id"]
        whole = await create(asks, **often)
        await audit(stored, retried, whole, seconds=400)
    first, again = starts(stored, retried)
    assert (first, again is not None and again >= 30 and again % 15 == 0) == (None, True)
    assert starts(stored, whole) == [None]
    assert weights(stored, retried) == weights(stored, whole)
