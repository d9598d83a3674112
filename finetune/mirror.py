"""What a training that shares no disk with the service hands over: how it reaches the service, and the record of its state on S3.

The files of its train/ folder lie below the job's S3 prefix by their sha256, so that nothing is ever written over; the
record, written last, says which names they have. Read by both sides; knows no network.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationError, model_validator

from finetune.exit_codes import StepError
from finetune.steps import StepFile

PREFIX = "train/"
"""Below the job's own prefix."""

RECORD = "mirror.json"
OBJECTS = 512
OBJECT_BYTES = 5 << 30
"""What S3 takes in one piece."""

LINES_BYTES = 256 << 10
"""Of progress.jsonl in one request."""

NAME = r"(result\.json|metrics\.csv|(adapter|model|checkpoint-[0-9]{1,9})/[A-Za-z0-9][A-Za-z0-9._-]{0,199})"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Access(StepFile):
    """access.json: where the service is, and the run's token. The file is the secret: mode 0600, new for each run."""

    url: str = Field(pattern=r"^https?://[^\s/?#]+$")
    token: SecretStr

    @classmethod
    def read(cls, path: Path) -> Access:
        """The file, validated.

        Raises:
            StepError: `invalid_step_file`; what stands in the file is not repeated.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise StepError("invalid_step_file", f"{path} does not say how the service is reached.") from None


class Piece(StepFile):
    """An object below `PREFIX`: its sha256, which is its key, and bytes."""

    sha256: Sha256
    size: int = Field(ge=0, le=OBJECT_BYTES)


class Entry(Piece):
    """One file of a train/ folder and what it holds."""

    path: str = Field(pattern=f"^{NAME}$")


class Mirror(StepFile):
    """mirror.json: a train/ folder as it was at one moment, without its progress.jsonl."""

    train_key: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    files: list[Entry] = Field(max_length=OBJECTS)

    @model_validator(mode="after")
    def _once(self) -> Mirror:
        if len({entry.path for entry in self.files}) != len(self.files):
            raise ValueError("a file is named twice")
        return self

    def folders(self, kind: str) -> dict[str, list[Entry]]:
        """Entries by folder, for folders whose name begins with `kind`."""
        found: dict[str, list[Entry]] = {}
        for entry in self.files:
            folder, slash, _ = entry.path.partition("/")
            if slash and folder.startswith(kind):
                found.setdefault(folder, []).append(entry)
        return found


def step_of(checkpoint: str) -> int:
    """The step of a folder `checkpoint-N`; -1 for another name."""
    match = re.fullmatch(r"checkpoint-(\d{1,9})", checkpoint)
    return int(match[1]) if match else -1
