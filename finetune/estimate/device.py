"""What a training will run on, as far as a job and a machine tell, and what it costs there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune import environment
from finetune.config import Execution

CLUSTER_CPUS = 4
"""Processors that pipeline/conf/resources.config gives a training."""
NVIDIA = Path("/dev/nvidiactl")

GPU_TERAFLOPS: dict[str, float] = {
    "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70, "A10": 125, "RTX 4090": 165,
    "RTX 3090": 71, "V100": 112, "T4": 65,
}  # fmt: skip
"""Dense bf16 (fp16 where there is no bf16) by the makers' data sheets."""
ANY_GPU = (60.0, 1000.0)


@dataclass(frozen=True)
class Device:
    """Where a training runs.

    Attributes:
        kind: cpu or gpu.
        name: Of the GPU, as asked for; None if any will do.
        count: GPUs, or processors.
        exact: Whether `count` processors are known, not assumed.
    """

    kind: Literal["cpu", "gpu"]
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
