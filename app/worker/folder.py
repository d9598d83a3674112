"""A job's folder below the runs folder: where everything lies, and the files the service puts there before a launch.

runs/<job>/steps/            step files, written once
runs/<job>/credentials       S3 keys, 0600; fetch-credentials also has HF_TOKEN. Gone when the job is settled
runs/<job>/access.json       where tasks share no disk: the run's token, 0600, new for each run
runs/<job>/train/            the trainer's state
runs/<job>/{work,launch}/    Nextflow's
runs/<job>/lease             touched while the worker's lease holds
runs/<job>/run-<attempt>/    one launch: parameters, logs, trace, handle.json, exit.json
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from app.jobs.service import output_prefix
from app.models import Job
from app.settings import Settings
from app.worker.seed import seed
from finetune.config import JobSpec
from finetune.mirror import PREFIX
from finetune.progress import write_atomic
from finetune.step_files import plan
from finetune.steps import S3, Comparison, FetchStep, ModelSource, Pinned, StepFile

CONTROL = "control.json"
CODE_VERSION = importlib.metadata.version("llamaflow")
"""Of this process: while it runs, another version may be installed under it, and for a moment none is."""


@dataclass(frozen=True)
class JobFolder:
    """The paths of one job."""

    root: Path

    @property
    def steps(self) -> Path:
        """The step files."""
        return self.root / "steps"

    @property
    def train(self) -> Path:
        """The trainer's state: checkpoints, progress.jsonl, result.json."""
        return self.root / "train"

    @property
    def work(self) -> Path:
        """Nextflow's task folders."""
        return self.root / "work"

    @property
    def access(self) -> Path:
        """The run's token and where it is good, for tasks that share no disk."""
        return self.root / "access.json"

    @property
    def lease(self) -> Path:
        """The lease confirmation, for the shim."""
        return self.root / "lease"

    @property
    def swept(self) -> Path:
        """There when the task folders were cleared: what they held must be made anew, in a new session."""
        return self.root / "swept"

    def run(self, attempt: int) -> Path:
        """The folder of one launch."""
        return self.root / f"run-{attempt}"


def of(settings: Settings, job_id: str) -> JobFolder:
    """The folder of a job; need not be there yet."""
    return JobFolder(settings.runs / job_id)


def prepare(folder: JobFolder, settings: Settings, job: Job, compare: Comparison | None = None) -> None:
    """Make everything a launch needs. The step files are made once and never again: a changed one would repeat its steps.

    Args:
        folder: The job's.
        settings: Of the service.
        job: Its row.
        compare: The version its gate compares with, if there is one.
    """
    for path in (folder.train, folder.root / "launch"):
        path.mkdir(parents=True, exist_ok=True)
    (folder.train / CONTROL).unlink(missing_ok=True)  # what the last run was asked is done
    write_credentials(folder, settings)
    if folder.steps.exists():
        return
    if job.retry_of is not None:
        seed(of(settings, job.retry_of).train, folder.train)
    beside = folder.root / "steps.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    for name, step in step_files(folder, settings, job, compare).items():
        write_atomic(beside / f"{name}.json", step.text())
    beside.rename(folder.steps)


def step_files(
    folder: JobFolder, settings: Settings, job: Job, compare: Comparison | None = None
) -> dict[str, StepFile]:
    """The job's step files. Only download, fetch and upload name a credentials file; where no disk is shared none names train/."""
    spec = JobSpec.model_validate(job.spec)
    shared = spec.execution.profile not in settings.unshared_profiles
    access = S3(endpoint=settings.s3_endpoint, region=settings.s3_region, credentials_file=_keys(folder, settings))
    files = plan(
        spec,
        job=job.id,
        training=[Pinned.model_validate(row) for row in job.training_objects or []],
        validation=[Pinned.model_validate(row) for row in job.validation_objects or []],
        model=ModelSource.model_validate(job.base),
        s3=access,
        cache_dir=str(settings.cache),
        state_dir=str(folder.train) if shared else None,
        mirror=None if shared else output_prefix(job) + PREFIX,
        compare=compare,
        code_version=CODE_VERSION,
    )
    if settings.hf_token is not None:
        fetch = files["fetch"]
        assert isinstance(fetch, FetchStep)  # noqa: S101  for the type checker
        own = access.model_copy(update={"credentials_file": str(folder.root / "fetch-credentials")})
        files["fetch"] = fetch.model_copy(update={"s3": own})
    return files


def write_credentials(folder: JobFolder, settings: Settings) -> None:
    """Write the keys where only this user reads them; anew at every launch, for they may have changed."""
    lines = _key_lines(settings)
    if lines:
        write_private(folder.root / "credentials", "".join(f"{line}\n" for line in lines))
    if settings.hf_token is not None:
        lines.append(f"HF_TOKEN={settings.hf_token.get_secret_value()}")
        write_private(folder.root / "fetch-credentials", "".join(f"{line}\n" for line in lines))


def forget_credentials(folder: JobFolder) -> None:
    """Remove the keys: nothing of the job will run again."""
    for name in ("credentials", "fetch-credentials", folder.access.name):
        (folder.root / name).unlink(missing_ok=True)


def ask_trainer(folder: JobFolder, intent: str) -> None:
    """Leave a wish for the trainer, which looks for it after every optimiser step.

    Args:
        folder: The job's.
        intent: `pause`: save a checkpoint and end.
    """
    write_atomic(folder.train / CONTROL, json.dumps({"intent": intent}) + "\n")


def is_asked(folder: JobFolder) -> bool:
    """Whether the trainer was left a wish that it has not obeyed yet."""
    return (folder.train / CONTROL).is_file()


def unask(folder: JobFolder) -> None:
    """Take a wish back; a trainer that has read it obeys it."""
    (folder.train / CONTROL).unlink(missing_ok=True)


def confirm_lease(folder: JobFolder, *, others: bool, end_after: float) -> None:
    """Tell the shim that the lease holds now, and what it must know should nobody tell it again.

    Args:
        folder: The job's.
        others: Whether another live worker host is registered.
        end_after: Seconds of silence after which the shim ends the run, if so.
    """
    if folder.root.is_dir():
        write_atomic(folder.lease, json.dumps({"others": others, "end_after": end_after}) + "\n")


def _keys(folder: JobFolder, settings: Settings) -> str | None:
    return str(folder.root / "credentials") if _key_lines(settings) else None


def _key_lines(settings: Settings) -> list[str]:
    values = {
        "AWS_ACCESS_KEY_ID": settings.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key,
        "AWS_SESSION_TOKEN": settings.s3_session_token,
    }
    return [f"{name}={value.get_secret_value()}" for name, value in values.items() if value is not None]


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user reads, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)
