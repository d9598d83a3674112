"""What a training will run on, as far as a job and a machine tell, and what it costs there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune import environment
from finetune.config import Execution
from finetune.steps import Room

CLUSTER_CPUS = 4
"""Processors that pipeline/conf/resources.config gives a training."""
NVIDIA = Path("/dev/nvidiactl")
DRIVER = Path("/proc/driver/nvidia/gpus")
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
USABLE = 0.9
"""Share of a memory that a training may count on: the rest is its driver's and its fragments'."""

Kind = Literal["cpu", "gpu"]

GPU_TERAFLOPS: dict[str, float] = {
    "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70, "A10": 125, "RTX 4090": 165,
    "RTX 3090": 71, "V100": 112, "T4": 65,
}  # fmt: skip
"""Dense bf16 (fp16 where there is no bf16) by the makers' data sheets."""
ANY_GPU = (60.0, 1000.0)
GPU_GIGABYTES: dict[str, int] = {
    "B200": 180, "H200": 141, "H100": 80, "A100": 40, "L40S": 48, "L4": 24, "A10G": 24, "A10": 24, "RTX 4090": 24,
    "RTX 3090": 24, "V100": 16, "T4": 16,
}  # fmt: skip
"""The least that a GPU of this name has; a name that says how much, such as A100-80GB, is believed."""
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Device:
    """Where a training runs.

    Attributes:
        kind: cpu or gpu.
        name: Of the GPU, as asked for; None if any will do.
        count: GPUs, or processors.
        exact: Whether `count` processors are known, not assumed.
    """

    kind: Kind
    name: str | None = None
    count: int = 1
    exact: bool = False

    @property
    def memory(self) -> Literal["ram", "vram"]:
        """Which memory its trainings fill."""
        return "vram" if self.kind == "gpu" else "ram"


def here() -> Device:
    """This machine, as the trainer would choose."""
    asked = environment.device()
    if asked.startswith("cuda") or (asked == "auto" and NVIDIA.exists()):
        return Device("gpu", None, 1)
    return Device("cpu", None, environment.threads() or os.cpu_count() or 1, exact=True)


def of_job(execution: Execution) -> Device:
    """What a job asks for; on profile local with no wish it is this machine."""
    if execution.gpus or execution.gpu_type:
        return Device("gpu", execution.gpu_type, max(1, execution.gpus))
    return here() if execution.profile == "local" else Device("cpu", None, CLUSTER_CPUS)


def price(prices: Mapping[str, float], execution: Execution, device: Device) -> float | None:
    """What an hour costs; None if the table does not say.

    Args:
        prices: By `profile/type/spot`, `profile/type`, `profile/gpu`, `profile` or `*`, for one GPU or one machine; the
            first that is there counts.
        execution: Profile and spot.
        device: GPU and how many.
    """
    kind = execution.gpu_type or device.name if device.kind == "gpu" else None
    names = [f"{execution.profile}/{kind}"] if kind else []
    names += [f"{execution.profile}/gpu"] if device.kind == "gpu" else []
    names = [*names, execution.profile, "*"]
    tried = [f"{name}/spot" for name in names] + names if execution.spot else names
    hour = next((prices[name] for name in tried if name in prices), None)
    return None if hour is None else hour * (device.count if device.kind == "gpu" else 1)


def teraflops(device: Device) -> tuple[float, float]:
    """Peak of one GPU: by its name, else whatever GPUs have."""
    name = (device.name or "").upper().replace("-", " ")
    found = next((peak for known, peak in GPU_TERAFLOPS.items() if known in name), None)
    return ANY_GPU if found is None else (found, found)


def room_of_job(execution: Execution) -> Room | None:
    """What a job asks for; None where it asks for nothing on this machine, whose memory then counts."""
    where = of_job(execution)
    if execution.gpus or execution.gpu_type:
        return Room(kind="gpu", bytes=_of_gpu(execution.gpu_type or ""))
    if execution.memory is not None:
        number, unit = execution.memory[:-2].strip(), execution.memory[-2:]
        return Room(kind="cpu", bytes=int(int(number) * UNITS[unit] * USABLE)) if where.kind == "cpu" else None
    return None if execution.profile == "local" else Room(kind=where.kind)


def room_here() -> Room:
    """This machine's memory, or that of its GPU; one that cannot be told is None."""
    if here().kind == "gpu":
        return Room(kind="gpu", bytes=min((size for name in _gpus() if (size := _of_gpu(name))), default=None))
    found = []
    try:
        text = MEMINFO.read_text(encoding="ascii")
        found.append(int(text.split("MemTotal:")[1].split()[0]) * 1024)
        found.append(int(CGROUP.read_text(encoding="ascii")))
    except (OSError, ValueError, IndexError):  # no such file, or "max": no limit
        pass
    return Room(kind="cpu", bytes=int(min(found) * USABLE) if found else None)


def _gpus() -> list[str]:
    """The names of this machine's NVIDIA GPUs, as their driver tells them."""
    try:
        texts = [path.read_text(encoding="utf-8") for path in sorted(DRIVER.glob("*/information"))]
    except OSError:
        return []
    return [line.partition(":")[2].strip() for text in texts for line in text.splitlines() if line.startswith("Model:")]


def _of_gpu(name: str) -> int | None:
    """Bytes that a training may count on, by a GPU's name; None if it is not known."""
    plain = name.upper().replace("-", " ")
    told = re.search(r"\b(\d{1,3}) ?GB\b", plain)
    size = int(told[1]) if told else next((gb for known, gb in GPU_GIGABYTES.items() if known in plain), None)
    return None if size is None else int(size * 1e9 * USABLE)
