"""How a training is cut for the memory there is: the largest micro-batches that fit, and activations twice only where they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from finetune.config import Execution, JobSpec, Lora
from finetune.estimate import device, memory, reckon, shape
from finetune.estimate.device import Device
from finetune.estimate.memory import TOKENS, Fit, Load, fit, needed
from finetune.estimate.ranges import exactly
from finetune.estimate.result import Basis, Estimate, Where
from finetune.steps import Room
from finetune.train import batches

pytestmark = pytest.mark.unit

GB = 10**9
LLAMA_8B = shape.Shape(8_030_000_000, 32 * 4096, 128_256, read=True)
SMALL = shape.Shape(134_500_000, 30 * 576, 49_152, read=True)


def load(of: shape.Shape = LLAMA_8B, kind: device.Kind = "gpu", longest: float = 1500, **more: Any) -> Load:
    return Load(of, more.pop("technique", "lora"), more.pop("lora", Lora()), Device(kind), longest, **more)


@pytest.mark.parametrize(
    ("what", "room", "expected"),
    [
        (load(SMALL, "cpu"), 24 * GB, Fit(1024)),
        (load(SMALL, "cpu", 200), 5 * GB, Fit(512)),
        (load(SMALL, "gpu"), 80 * GB, Fit(16_384)),
        (load(), 80 * GB * 0.9, Fit(4096)),
        (load(), 24 * GB * 0.9, Fit(2048, True)),
        (load(technique="qlora"), 24 * GB * 0.9, Fit(8192, True)),
        (load(), 16 * GB * 0.9, Fit(2048, True, fits=False)),
        (load(longest=100_000), 80 * GB * 0.9, Fit(2048, True, fits=False)),
    ],
)
def test_memory_decides_the_cut(what: Load, room: float, expected: Fit) -> None:
    assert fit(what, room) == expected


@given(
    room=some.integers(1 * GB, 200 * GB), longest=some.integers(8, 20_000), kind=some.sampled_from(["cpu", "gpu"]),
    technique=some.sampled_from(["lora", "qlora", "full"]), dpo=some.booleans(), packing=some.booleans(),
)  # fmt: skip
def test_what_fits_is_within_memory_and_more_memory_is_never_worse(
    room: int, longest: int, kind: Any, technique: Any, dpo: bool, packing: bool
) -> None:
    what = load(SMALL, kind, longest, technique=technique, dpo=dpo, packing=packing)
    found, more = fit(what, room), fit(what, 2 * room)
    if found.fits:
        assert needed(what, max(found.tokens, longest), found.recompute) <= room
        assert more.fits
    assert (more.recompute, -more.tokens) <= (found.recompute, -found.tokens)
    assert memory.LEAST[what.device.kind] <= found.tokens <= TOKENS[what.device.kind]


def test_the_trainer_has_its_budgets_from_here() -> None:
    assert {"cpu": batches.CPU_TOKENS, "gpu": batches.GPU_TOKENS} == TOKENS


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        ({}, None),
        ({"memory": "16 GB"}, Room(kind="cpu", bytes=int(16 * GB * 0.9))),
        ({"gpus": 1}, Room(kind="gpu")),
        ({"gpu_type": "nvidia-tesla-a100-80gb"}, Room(kind="gpu", bytes=int(80 * GB * 0.9))),
        ({"gpus": 2, "gpu_type": "H100"}, Room(kind="gpu", bytes=int(80 * GB * 0.9))),
        ({"gpu_type": "L40S"}, Room(kind="gpu", bytes=int(48 * GB * 0.9))),
        ({"profile": "slurm"}, Room(kind="cpu")),
    ],
)
def test_what_a_job_asks_for(asked: dict[str, Any], room: Room | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFLOW_DEVICE", "cpu")
    assert device.room_of_job(Execution(**asked)) == room


def test_a_machine_has_what_its_cgroup_leaves_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFLOW_DEVICE", "cpu")
    monkeypatch.setattr(device, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(device, "CGROUP", tmp_path / "memory.max")
    assert device.room_here() == Room(kind="cpu")
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemFree:  1 kB\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert device.room_here().bytes == int(16_000_000 * 1024 * 0.9)
    (tmp_path / "memory.max").write_text("2000000000\n")
    assert device.room_here().bytes == 1_800_000_000


def test_a_gpu_of_this_machine_is_known_by_its_drivers_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFLOW_DEVICE", "cuda")
    monkeypatch.setattr(device, "DRIVER", tmp_path)
    assert device.room_here() == Room(kind="gpu")
    for name, model in (("0000:01", "NVIDIA H100 80GB HBM3"), ("0000:02", "NVIDIA L4")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "information").write_text(f"Model: \t\t {model}\nIRQ: 1\n")
    assert device.room_here().bytes == int(24 * GB * 0.9)


def test_an_estimate_says_where_memory_is_short() -> None:
    def told(gpu: str, **more: Any) -> list[str]:
        spec = JobSpec.model_validate({"model": "m", "training_file": "t", "execution": {"gpu_type": gpu}} | more)
        known = reckon.Known(Device("gpu", gpu), LLAMA_8B)
        basis = Basis(rows_read=100, complete=True, tokens="tokenizer", seconds=None, memory=None)
        empty = Estimate(model="m", technique="lora", device=Where(kind="gpu", count=1, memory="vram"), basis=basis)
        counted = reckon.Counted(exactly(100), exactly(0), exactly(50_000), exactly(20_000), exactly(1_500))
        return reckon.complete(empty, spec, counted, known).warnings

    assert told("H100") == []
    assert told("L4") == [reckon.TWICE]
    assert told("T4") == [reckon.SHORT]
    assert told("T4", technique="qlora") == [reckon.TWICE]
