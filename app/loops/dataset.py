"""The dataset of a round: what the promoted version was trained on, corrected, and the new examples behind it. Blocking.

A row whose question was corrected is replaced; else the old answer would be taught beside the new one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.feedback import examples
from app.feedback.examples import Chosen, Example
from app.files.storage import connect
from app.models import Job
from app.settings import Settings
from finetune.config import Data
from finetune.data.row import Row
from finetune.exit_codes import StepError
from finetune.s3 import put

NOT_CHATS = "The promoted version was trained on rows that are no conversations; feedback is."


@dataclass(frozen=True)
class Made:
    """A dataset on disk, beside what it is made of."""

    path: Path
    chosen: Chosen
    old: int
    replaced: int

    def counts(self) -> dict[str, int]:
        """How many examples of which kind."""
        return self.chosen.counts() | {"old": self.old, "replaced": self.replaced}


def choose(settings: Settings, found: list[Example], job: Job) -> Chosen:
    """The new examples among feedback.

    Raises:
        StepError: What was trained on cannot be read.
    """
    return examples.choose(found, *examples.known(connect(settings), job))


def build(settings: Settings, chosen: Chosen, job: Job, folder: Path) -> Made:
    """Write the dataset.

    Raises:
        StepError: What was trained on cannot be read; `invalid_file_format`: it is no conversations.
    """
    corrected, counted = {example.question for example in chosen.examples}, {"old": 0, "replaced": 0}
    handle = tempfile.NamedTemporaryFile(dir=folder, suffix=".jsonl", delete=False)  # noqa: SIM115
    with handle as file:
        for line in _old(settings, job, corrected, counted):
            file.write(line)
        for example in chosen.examples:
            file.write(example.line())
    return Made(Path(handle.name), chosen, counted["old"], counted["replaced"])


def upload(settings: Settings, path: Path, uri: str) -> None:
    """Put it on S3."""
    put(connect(settings), path, uri)


def _old(settings: Settings, job: Job, corrected: set[str], counted: dict[str, int]) -> Iterator[bytes]:
    data = Data.model_validate(job.spec.get("data") or {})
    for row in examples.of_dataset(connect(settings), job.training_objects or [], data):
        if not row.messages:
            raise StepError("invalid_file_format", NOT_CHATS, param="training_file")
        example = examples.as_example(row)
        if example is not None and example.question in corrected:
            counted["replaced"] += 1
            continue
        counted["old"] += 1
        yield json.dumps(_line(row), ensure_ascii=False).encode() + b"\n"


def _line(row: Row) -> dict[str, Any]:
    """A row as a `messages` dataset has it; untrained answers keep their weight."""
    turns = [
        _turn(message.as_json()) | ({"weight": 0} if message.role == "assistant" and not message.trained else {})
        for message in row.messages
    ]
    return {"messages": turns} | ({"tools": list(row.tools)} if row.tools else {})


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn with the arguments of its calls as text, as datasets have them."""
    if "tool_calls" not in turn:
        return turn
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in turn["tool_calls"]
    ]
    return turn | {"tool_calls": calls}
