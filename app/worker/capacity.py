"""What one worker can take: how many runs at once, on which profiles, with how much memory; and what no worker can.

GPUs are counted by the driver's device files: torch is never imported, and no program is started for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.models import new_id
from app.nextflow.shim import write_once
from app.settings import PROJECT_ROOT, Settings
from finetune import gpu

HOST_BOUND = ("local", "docker", "podman")
"""Profiles whose tasks run on the worker's own machine, and end with it."""

SHARED = {"exit_codes", "resources"}
"""Files of pipeline/conf that are no place."""


@dataclass(frozen=True)
class Capacity:
    """What a worker can take.

    Attributes:
        slots: Runs at once.
        profiles: Places of pipeline/conf it runs on.
        memory: GB that its runs on this machine may ask for together; None: as much as they like.
        runs: Identity of its runs folder; the same for all who share the disk, None where it cannot be written.
    """

    slots: int
    profiles: list[str]
    memory: float | None
    runs: str | None

    def as_json(self) -> dict[str, Any]:
        """As it stands in the worker's row."""
        return asdict(self)


def of(settings: Settings) -> Capacity:
    """What a worker with these settings can take.

    Raises:
        ValueError: A profile is named that is none.
    """
    known = {path.stem for path in (PROJECT_ROOT / "pipeline" / "conf").glob("*.config")} - SHARED
    unknown = sorted(set(settings.worker_profiles) - known)
    if unknown:
        raise ValueError(
            f"LLAMAFLOW_WORKER_PROFILES names {unknown[0]!r}, but there is no pipeline/conf/{unknown[0]}.config. "
            f"There are: {', '.join(sorted(known))}."
        )
    slots = settings.worker_slots if settings.worker_slots is not None else max(1, gpus())
    return Capacity(slots, sorted(settings.worker_profiles), settings.worker_memory, identity(settings.runs))


def gpus(dev: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """NVIDIA GPUs of this machine or container: the device files given to it, else what the driver lists."""
    return len(gpu.listed(dev)) or (len(list(driver.iterdir())) if driver.is_dir() else 0)


def identity(runs: Path) -> str | None:
    """The id of a runs folder, made by whoever comes first: workers that read the same one share the folder."""
    place = runs / ".folder"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            write_once(place, {"id": new_id("runs_")})
        return place.read_text(encoding="utf-8").strip()
    except OSError:
        return None
