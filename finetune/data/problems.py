"""What PREPARE_DATA finds wrong with a dataset, gathered over all its files, so that one failure names every kind at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune.data.arrays import Split
from finetune.data.formats import Errors, LineError
from finetune.exit_codes import BY_NAME, StepError

Code = Literal["invalid_file_format", "special_tokens_in_text", "overlength_examples"]
ORDER: tuple[Code, ...] = ("invalid_file_format", "special_tokens_in_text", "overlength_examples")
"""Which code a job fails with when there are several kinds."""

PARAMS: dict[Split, str] = {"train": "training_file", "validation": "validation_file"}


@dataclass(frozen=True)
class File:
    """One file of a dataset: where it lies here, what the user called it, and its sha256."""

    path: Path
    uri: str
    split: Split
    sha256: str


@dataclass
class Problems:
    """Everything found so far, by code and file."""

    _found: dict[tuple[Code, File], Errors] = field(default_factory=dict)

    def add(self, code: Code, file: File, kind: str, line: int, message: str) -> None:
        """Take one problem; `kind` is a word of ours that groups equal ones."""
        self._found.setdefault((code, file), Errors()).add(kind, LineError(line, message))

    def join(self, file: File, found: dict[Code, Errors]) -> None:
        """Take what was found in a file."""
        self._found |= {(code, file): errors for code, errors in found.items()}

    def settle(self) -> None:
        """Go on if nothing was found.

        Raises:
            StepError: The gravest code, with every file's lines and what to do.
        """
        if not self._found:
            return
        found = sorted(self._found.items(), key=lambda item: ORDER.index(item[0][0]))
        (code, first), errors = found[0]
        told = " ".join(f"{file.uri}: {errors.sentence()}" for (_, file), errors in found)
        remedies = " ".join(dict.fromkeys(BY_NAME[code].remedy for (code, _), _ in found))
        raise StepError(
            code, f"{told} {remedies}", param=PARAMS[first.split], lines=[error.line for error in errors.chosen()]
        )
