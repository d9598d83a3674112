"""Bit for bit: killed while a checkpoint is written, and with two threads."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

import pytest
import torch

from finetune.config import Lora
from tests.finetune.train.conftest import DEADLINE, Bench

pytestmark = pytest.mark.train


def stopped_within(process: subprocess.Popen[str], made: Bench, name: str, after: int) -> None:
    """Stop a training while it writes a checkpoint, after `after` others."""
    beside, end = made.state(name) / ".making-checkpoint", time.monotonic() + 2 * DEADLINE
    while time.monotonic() < end:
        if beside.is_dir() and len(made.lines(name, "checkpoint")) >= after:
            process.send_signal(signal.SIGSTOP)
            if beside.is_dir():
                return
            process.send_signal(signal.SIGCONT)
        assert process.poll() is None, "it ended before it was caught"
    raise AssertionError("no checkpoint was seen being written")


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written_it_ends_with_the_same_bytes(
    bench: Callable[..., Bench], reaped: list[subprocess.Popen[str]]
) -> None:
    made = bench(lora=Lora(r=4, dropout=0.1), n_epochs=20, save_steps=1, eval_steps=99)
    reaped.append(process := made.start("caught"))
    stopped_within(process, made, "caught", after=3)
    process.kill()
    process.wait()
    whole = {path.name for path in made.state("caught").glob("checkpoint-*")}
    made.train("caught")
    made.train("undisturbed")
    resumed = made.lines("caught", "start")[1]["resumed_from"]
    assert f"checkpoint-{resumed}" in whole
    assert made.weights("caught") == made.weights("undisturbed")


def test_two_threads_repeat_to_the_bit(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("LLAMAFLOW_THREADS", "2")
    made = bench(lora=Lora(r=64), n_epochs=2)
    try:
        made.train("first")
        assert torch.get_num_threads() == 2
        made.train("second")
    finally:
        torch.set_num_threads(before)
    assert made.weights("first") == made.weights("second")
