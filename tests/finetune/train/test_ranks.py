"""Two processes that train together end with the weights of one, and share every example once."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from finetune import environment
from finetune.config import Lora
from finetune.train.batches import Steps, micro_batches, share
from tests.finetune.train.conftest import QUIET, Bench

steady = settings(derandomize=True, deadline=None)


@pytest.mark.unit
@steady
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=50),
    size=st.integers(1, 20),
    count=st.integers(1, 5),
    budget=st.integers(1, 200),
    epoch=st.integers(0, 3),
)
def test_every_example_is_trained_once_an_epoch_by_one_process(
    lengths: list[int], size: int, count: int, budget: int, epoch: int
) -> None:
    widths, taken = np.array(lengths), list[int]()
    steps = Steps(len(lengths), size, seed=3)
    steps.set_epoch(epoch)
    for rows in steps:
        shares = [share(rows, widths, rank, count) for rank in range(count)]
        assert sorted(row for own in shares for row in own) == sorted(rows)
        assert all(len(one) - len(other) in (0, 1) for one, other in pairwise(shares))
        taken += [row for own in shares for micro in micro_batches(own, widths, budget) for row in micro]
    assert sorted(taken) == list(range(len(lengths)))


def together(made: Bench, name: str, processes: int) -> subprocess.CompletedProcess[str]:
    """A training by torchrun, to its end."""
    folder = made.root / name
    folder.mkdir()
    (folder / "train.json").write_text(made.step(name).text())
    inputs = [part for key, path in made.inputs.items() for part in ("--in", f"{key}={path}")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    line += ["--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "finetune", "train"]
    return subprocess.run(
        [*line, "--job", str(folder / "train.json"), *inputs, "--out", str(folder)],
        env=environment.for_child(QUIET | {"OMP_NUM_THREADS": "1"}), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


@pytest.mark.train
@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_two_processes_give_the_weights_of_one(bench: Callable[..., Bench]) -> None:
    made = bench(n_epochs=2, batch_size=5, save_steps=3, lora=Lora(r=4))
    alone = made.train("alone")
    ended = together(made, "two", 2)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    one, two = load(made.weights("alone")), load(made.weights("two"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-5, msg=key)
    steps = made.lines("two", "step")
    assert [line["tokens"] for line in steps] == [line["tokens"] for line in made.lines("alone", "step")]
    assert [line["loss"] for line in steps] == pytest.approx(
        [line["loss"] for line in made.lines("alone", "step")], rel=1e-4
    )
    assert steps[-1]["tokens"] == alone.trained_tokens
    assert len(made.lines("two", "evaluation")) == len(made.lines("alone", "evaluation"))
