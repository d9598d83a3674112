"""Feedback as training data: examples, compared with rows that were trained on and rows that are held out.

A question is the conversation before its last answer. An example whose question is held out is left out (it would be trained on
what it is measured by); one that stands in training word for word is there already. Blocking where it reads S3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.models import Feedback, Job
from app.worker import objects
from finetune.config import Data
from finetune.data.formats import Reader
from finetune.data.reading import Flaw, Source
from finetune.data.row import Pair, Row
from finetune.exit_codes import StepError
from finetune.steps import Pinned

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
else:
    S3Client = Any

Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """A conversation whose last turn is the answer to learn."""

    messages: Turns

    @property
    def question(self) -> str:
        """The same for equal questions."""
        return key(self.messages[:-1])

    @property
    def answer(self) -> str:
        """What is to be learned."""
        return str(self.messages[-1]["content"])

    def line(self) -> bytes:
        """A row of a `messages` dataset."""
        return json.dumps({"messages": self.messages}, ensure_ascii=False).encode() + b"\n"


@dataclass
class Known:
    """What stands in a dataset: questions with the answers they have there."""

    answers: dict[str, set[str]] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """One more row."""
        self.answers.setdefault(example.question, set()).add(example.answer)

    def has(self, example: Example) -> bool:
        """Whether it stands there word for word."""
        return example.answer in self.answers.get(example.question, ())


@dataclass
class Chosen:
    """What is left of feedback.

    Attributes:
        examples: To be trained on, the newest of each question.
        trained: Left out, as they stand in training.
        held_out: Left out, as their question is held out.
        repeated: Left out, as newer feedback answers the same question.
    """

    examples: list[Example]
    trained: int = 0
    held_out: int = 0
    repeated: int = 0

    def counts(self) -> dict[str, int]:
        """How many there are, and were left out."""
        return {"new": len(self.examples), "already_trained": self.trained, "held_out": self.held_out,
                "repeated": self.repeated}  # fmt: skip


def key(turns: Turns) -> str:
    """sha256 of a conversation, blanks around its texts aside."""
    plain = [[turn["role"], str(turn["content"]).strip()] for turn in turns]
    return hashlib.sha256(json.dumps(plain, ensure_ascii=False).encode()).hexdigest()


def of_feedback(rows: Iterable[Feedback], *, good: bool) -> Iterator[Example]:
    """What can be learned of feedback: corrections, and with `good` also answers that were rated good."""
    for row in rows:
        said = row.correction if row.correction is not None else (row.answer if good and row.rating == "good" else None)
        if said is not None and said.strip():
            yield Example([*row.messages, {"role": "assistant", "content": said}])


def choose(found: Iterable[Example], training: Known, held_out: Known) -> Chosen:
    """Leave out what must not or need not be trained on.

    Args:
        found: Oldest first.
        training: What was trained on.
        held_out: What is measured by.
    """
    newest: dict[str, Example] = {}
    chosen = Chosen([])
    for example in found:
        if example.question in held_out.answers:
            chosen.held_out += 1
        elif training.has(example):
            chosen.trained += 1
        else:
            chosen.repeated += example.question in newest
            newest.pop(example.question, None)
            newest[example.question] = example
    chosen.examples = list(newest.values())
    return chosen


def of_dataset(s3: S3Client, pins: list[dict[str, Any]], data: Data) -> Iterator[Row]:
    """The rows of a dataset on S3 as they were pinned, of whatever format.

    Raises:
        StepError: `object_changed`, `file_not_found`, `access_denied`, `s3_unavailable`; `invalid_file_format`.
    """
    reader = Reader(data)
    for pin in pins:
        for row in reader.rows(Source(objects.stream(s3, Pinned.model_validate(pin), "training_file"))):
            if isinstance(row, Flaw):
                raise StepError("invalid_file_format", f"{pin['uri']}, line {row.line}: {row.message}")
            yield row.chosen if isinstance(row, Pair) else row


def as_example(row: Row) -> Example | None:
    """A row as an example, if it is a conversation that ends with an answer and nothing but texts."""
    if not row.messages or row.tools or row.messages[-1].role != "assistant":
        return None
    if any(message.tool_calls or message.role == "tool" for message in row.messages):
        return None
    return Example([{"role": message.role, "content": message.content} for message in row.messages])


def known(s3: S3Client, job: Job | None) -> tuple[Known, Known]:
    """What the job of a version trained on, and what it held out in a file of its own. Blocking."""
    training, held_out = Known(), Known()
    if job is not None:
        data = Data.model_validate(job.spec.get("data") or {})
        for into, pins in ((training, job.training_objects), (held_out, job.validation_objects)):
            for row in of_dataset(s3, pins or [], data):
                if (example := as_example(row)) is not None:
                    into.add(example)
    return training, held_out
