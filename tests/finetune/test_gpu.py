"""Which GPU a step takes: each its own, until it ends, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune import gpu

HOLD = """
import os, sys
from finetune import environment
environment.take_gpu()
print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""

Step = Callable[..., str | None]


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def step(tmp_path: Path, running: list[subprocess.Popen[str]]) -> Step:
    """Start a step that sees these GPUs; what it took."""

    def started(visible: str, **extra: str) -> str | None:
        env = os.environ | {"TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": visible} | extra
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        shown = running[-1].stdout
        assert shown is not None
        return shown.readline().strip()

    return started


def test_each_step_has_its_own_and_one_too_many_shares(step: Step) -> None:
    assert [step("0,1,2") for _ in range(3)] == ["0", "1", "2"]
    assert step("0,1,2") in ("0", "1", "2")


def test_the_gpu_of_a_step_that_was_killed_is_free(step: Step, running: list[subprocess.Popen[str]]) -> None:
    assert [step("0,1"), step("0,1")] == ["0", "1"]
    running[0].kill()
    running[0].wait()
    assert step("0,1") == "0"


def test_steps_that_are_given_different_ones_agree_on_what_is_taken(step: Step) -> None:
    assert [step("2,0"), step("2,1"), step("GPU-7f/../x,2")] == ["2", "1", "GPU-7f/../x"]


def test_one_that_was_given_one_or_is_told_where_to_compute_chooses_nothing(step: Step, tmp_path: Path) -> None:
    assert step("1") == "1"
    assert step("") == ""
    assert step("0,1", LLAMAFLOW_DEVICE="cuda:1") == "0,1"
    assert step("0,1", LOCAL_RANK="0") == "0,1"
    assert not list(tmp_path.iterdir())


def test_a_link_in_place_of_the_lock_file_is_not_followed(step: Step, tmp_path: Path) -> None:
    (tmp_path / "llamaflow-gpu-0.lock").symlink_to(tmp_path / "elsewhere")
    assert step("0,1") == "1"
    assert not (tmp_path / "elsewhere").exists()


def test_gpus_are_told_by_their_device_files(tmp_path: Path) -> None:
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpu.listed(tmp_path) == ["2", "10"]
