"""The command line and environment of one launch of Nextflow. Pure: knows paths and words, starts nothing, reads nothing.

Everything a user wrote stands in step files; what Nextflow itself is given (it pastes parameters into scripts) is made by the
service alone: folders, the run's label, the profile's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAFE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
SAFE_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

LABEL = "LLAMAFLOW_RUN"
"""Variable that every task of a job carries: what a dead head left running is found by it."""


@dataclass(frozen=True)
class Launch:
    """What is started, in which folder, with nothing of the parent's environment but this."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path


@dataclass(frozen=True)
class Order:
    """One launch of a job's pipeline.

    Attributes:
        job: The job's id; every task carries it as label.
        folder: The job's folder; `steps/`, `work/` and `launch/` lie in it.
        run_folder: This launch's own folder in it: parameters, trace and logs.
        session: Nextflow's session id: the same for every launch that may use what the earlier ones did.
        resume: Whether an earlier launch used this session.
        profile: A profile of pipeline/nextflow.config.
        stub: Run the stubs.
        access: The file by which the training reaches the service, where it shares no disk with it.
    """

    job: str
    folder: Path
    run_folder: Path
    session: str
    resume: bool
    profile: str
    stub: bool = False
    access: Path | None = None

    def __post_init__(self) -> None:
        for name in (self.job, *self.profile.split(",")):
            if not SAFE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot stand on a command line of Nextflow")
        if not SAFE_UUID.fullmatch(self.session):
            raise ValueError(f"{self.session!r} is no session id")


def build(order: Order, *, nextflow: Sequence[str], pipeline: Path, env: Mapping[str, str], bin_dir: Path) -> Launch:
    """What to start for `order`.

    Args:
        order: The launch.
        nextflow: How Nextflow is started, up to its own arguments.
        pipeline: main.nf.
        env: The allow-listed environment; no credential may be in it, for it ends up in task files.
        bin_dir: Where the `python` of the tasks lies; comes first on PATH.
    """
    options = [
        "-ansi-log", "false",
        "-work-dir", str(order.folder / "work"),
        "-params-file", str(order.run_folder / "params.json"),
        "-with-trace", str(order.run_folder / "trace.tsv"),
        "-profile", order.profile,
    ]  # fmt: skip
    argv = [*nextflow, "-log", str(order.run_folder / "nextflow.log"), "run", str(pipeline), *options]
    argv += ["-resume", order.session] if order.resume else []
    argv += ["-stub-run"] if order.stub else []
    return Launch(tuple(argv), _environment(order, env, bin_dir), order.folder / "launch")


def parameters(order: Order) -> str:
    """The content of the parameters file: only values that the service made."""
    made = {"run_label": order.job, "steps": str(order.folder / "steps")}
    if order.access is not None:
        made["access"] = str(order.access)
    return json.dumps(made, indent=1, sort_keys=True) + "\n"


def _environment(order: Order, env: Mapping[str, str], bin_dir: Path) -> dict[str, str]:
    made = dict(env) | {LABEL: order.job}
    made["PATH"] = f"{bin_dir}:{env['PATH']}" if env.get("PATH") else str(bin_dir)
    if not order.resume:
        made["NXF_UUID"] = order.session
    return made
