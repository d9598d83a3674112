"""Trainings of every technique and method, killed with a signal that nobody can catch: taken up, they give the same bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from finetune.config import Lora
from tests.finetune.train.conftest import PAIRS, Bench

pytestmark = [pytest.mark.train, pytest.mark.slow]

PREFERENCES: dict[str, Any] = {"rows": PAIRS, "held_out": PAIRS[:2], "method": "dpo", "learning_rate": 0.001}
KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"lora": Lora(r=4, use_rslora=True, dropout=0.1)},
    "dora": {"lora": Lora(r=4, use_dora=True, dropout=0.1)},
    "qlora": {"technique": "qlora", "lora": Lora(r=4, dropout=0.1)},
    "full": {"technique": "full", "learning_rate": 0.001},
    "trl": {"backend": "trl"},
    "dpo": PREFERENCES,
    "dpo-qlora": PREFERENCES | {"technique": "qlora"},
    "dpo-full": PREFERENCES | {"technique": "full", "learning_rate": 0.0003},
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_it_gives_the_undisturbed_bytes(
    bench: Callable[..., Bench], kind: str, reaped: list[subprocess.Popen[str]]
) -> None:
    made = bench(n_epochs=20, save_steps=7, eval_steps=30, **KINDS[kind])
    reaped.append(process := made.start("killed"))
    made.wait_for_step("killed", 16)
    process.kill()
    process.wait()
    assert not (made.state("killed") / "result.json").exists()
    made.train("killed")
    made.train("undisturbed")
    resumed = made.lines("killed", "start")[1]["resumed_from"]
    assert resumed >= 14
    assert resumed % 7 == 0
    assert made.weights("killed") == made.weights("undisturbed")
