"""The checkpoints of a training that shared no disk with UPLOAD_MODEL: brought from its mirror on S3.

Only the adapter's files of each; a checkpoint that is not whole there any more is left out.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from finetune import s3
from finetune.exit_codes import StepError
from finetune.mirror import RECORD, Entry, Mirror, step_of

CHECKPOINT = "checkpoint-"


def bring(client: s3.S3Client, prefix: str, names: tuple[str, ...], out: Path) -> Path:
    """Bring the checkpoints that a mirror has.

    Args:
        client: With the step's credentials.
        prefix: Of the mirror, with a slash at its end.
        names: The files of a checkpoint that are wanted.
        out: Gets a folder `mirrored` with a folder for each checkpoint that has them all.
    Returns:
        That folder.
    Raises:
        StepError: `s3_unavailable`, `access_denied`.
    """
    place = out / "mirrored"
    place.mkdir(exist_ok=True)
    record = _record(client, prefix, place)
    found = record.folders(CHECKPOINT) if record is not None else {}
    for name in sorted(found, key=step_of):
        entries = {entry.path.rpartition("/")[2]: entry for entry in found[name]}
        if set(names) <= set(entries):
            _checkpoint(client, prefix, {file: entries[file] for file in names}, place / name)
    return place


def _record(client: s3.S3Client, prefix: str, place: Path) -> Mirror | None:
    target = place / RECORD
    try:
        s3.fetch(client, prefix + RECORD, target)
        return Mirror.model_validate_json(target.read_bytes())
    except StepError as problem:
        if problem.code.name != "file_not_found":
            raise
    except ValidationError:
        print(f"{prefix}{RECORD} is no record of a training: its checkpoints are left out.", flush=True)
    return None


def _checkpoint(client: s3.S3Client, prefix: str, entries: dict[str, Entry], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, entry in entries.items():
        try:
            sha256, _ = s3.fetch(client, prefix + entry.sha256, folder / name)
        except StepError as problem:
            if problem.code.name != "file_not_found":
                raise
            sha256 = ""
        if sha256 != entry.sha256:
            print(f"{folder.name} is not whole on S3 any more: it is left out.", flush=True)
            (folder / name).unlink(missing_ok=True)
            return
