"""A job's logs, trace and reports on S3, before its folder goes: small files below `<uploads>/<project>/logs/<job>/`.

`index.json` lists what is there, `{"name", "stage", "key"}` each; app/jobs/archive.py reads it. It lies where no other project
may read. Of a log larger than KEPT_BYTES the end is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.files.storage import connect
from app.models import Job, Run, Stage
from app.settings import Settings
from finetune.exit_codes import StepError
from finetune.s3 import content_type, errors, split

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

KEPT_BYTES = 64 << 20
OF_A_RUN = ("stdout.log", "stderr.log", "nextflow.log", "trace.tsv", "exit.json")
OF_A_STAGE = (".command.log", ".command.sh", ".exitcode", "error.json", "*.report.json")
OF_A_TRAINING = ("progress.jsonl", "result.json", "metrics.csv")


@dataclass(frozen=True)
class Kept:
    """A file to be kept: its name in the archive, its stage if it is of one, and where it lies."""

    name: str
    stage: str | None
    path: Path


def prefix(settings: Settings, job: Job) -> str:
    """Where a job's logs are kept."""
    return f"{settings.files_prefix.rstrip('/')}/{job.project_id}/logs/{job.id}/"


def store(settings: Settings, job: Job, home: Path, runs: list[Run], stages: list[tuple[Stage, int]]) -> str:
    """Keep the logs of a job on S3. Blocking; may be repeated.

    Args:
        home: The job's folder on this machine; another machine may have kept its own part before.
        stages: Each with the number of its run.
    Returns:
        The prefix they lie below.
    Raises:
        StepError: `s3_unavailable`, `access_denied`, `file_not_found` (no such bucket).
    """
    s3, below = connect(settings), prefix(settings, job)
    found = [file for file in _found(home, runs, stages) if file.path.resolve().is_relative_to(home.resolve())]
    index = {row["name"]: row for row in _index(s3, below)}
    for file in found:
        _put(s3, below + file.name, _end_of(file.path))
        index[file.name] = {"name": file.name, "stage": file.stage, "key": split(below + file.name)[1]}
    content = json.dumps(sorted(index.values(), key=lambda row: str(row["name"])), indent=1) + "\n"
    _put(s3, f"{below}index.json", content.encode())
    return below


def _found(home: Path, runs: list[Run], stages: list[tuple[Stage, int]]) -> list[Kept]:
    """What there is to keep, in the order in which it is read."""
    kept = [
        Kept(f"run-{run.attempt}/{name}", None, home / Path(run.folder).name / name)
        for run in runs
        for name in OF_A_RUN
    ]
    for stage, run in stages:
        folder = Path(stage.workdir) if stage.workdir else None
        for path in [path for name in OF_A_STAGE for path in sorted(folder.glob(name))] if folder else []:
            shown = path.name.removeprefix(".")
            kept.append(
                Kept(f"run-{run}/{stage.process}-{stage.task_hash.replace('/', '-')}/{shown}", stage.process, path)
            )
    kept += [Kept(f"train/{name}", None, home / "train" / name) for name in OF_A_TRAINING]
    return [file for file in kept if file.path.is_file()]


def _end_of(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - KEPT_BYTES))
        return file.read(KEPT_BYTES)


def _index(s3: S3Client, below: str) -> list[dict[str, Any]]:
    """What was kept before."""
    bucket, key = split(f"{below}index.json")
    try:
        with errors(below):
            made = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    except StepError as problem:
        if problem.code.name == "file_not_found":
            return []
        raise
    except ValueError:
        return []
    return [row for row in made if isinstance(row, dict) and "name" in row]


def _put(s3: S3Client, uri: str, content: bytes) -> None:
    bucket, key = split(uri)
    with errors(uri):
        s3.put_object(Bucket=bucket, Key=key, Body=content, ContentType=content_type(key))
