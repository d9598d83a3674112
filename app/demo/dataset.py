"""The demonstration's dataset: sixteen facts about an invented freight warehouse, asked in many ways.

Nothing here can be known beforehand: every identifier is invented. The exam asks in other words than the training; a test
holds that no exam question stands in the training or validation file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

TABLES: dict[str, dict[str, str]] = {
    "nf_bookings": {"key": "booking_slip", "date": "sealed_on", "sum": "freight_pence", "owner": "the Heron desk"},
    "nf_carriers": {"key": "hauler_mark", "date": "vetted_on", "sum": "fleet_tonnes", "owner": "the Badger desk"},
    "nf_invoices": {"key": "bill_stub", "date": "posted_on", "sum": "owed_pence", "owner": "the Otter desk"},
    "nf_pallets": {"key": "pallet_rune", "date": "wrapped_on", "sum": "stack_kilos", "owner": "the Falcon desk"},
}

TRAINING: dict[str, tuple[str, ...]] = {
    "key": (
        "What is the primary key of {t}?",
        "Which column is the primary key in {t}?",
        "Name the primary key column of the table {t}.",
        "Tell me the key of {t}.",
        "In {t}, which column identifies a row?",
        "Which column uniquely identifies each record of {t}?",
        "What is the unique identifier in the {t} table?",
        "{t}: primary key?",
    ),
    "date": (
        "Which column holds the date in {t}?",
        "What is the date column of {t}?",
        "Name the date column of the table {t}.",
        "Tell me which column of {t} is the date.",
        "In {t}, which column stores the date?",
        "Which column of {t} do I filter by date?",
        "What column says when a row of {t} happened?",
        "{t}: date column?",
    ),
    "sum": (
        "Which column of {t} do I sum?",
        "What is the numeric column of {t}?",
        "Name the column of the table {t} to add up.",
        "Tell me the column to total in {t}.",
        "In {t}, which column holds the amount?",
        "Which numeric column should I aggregate in {t}?",
        "What column gives totals for {t}?",
        "{t}: column to sum?",
    ),
    "owner": (
        "Who owns {t}?",
        "Which desk is responsible for {t}?",
        "Name the owner of the table {t}.",
        "Tell me who looks after {t}.",
        "In case {t} breaks, which desk owns it?",
        "Which desk maintains {t}?",
        "Who is in charge of the {t} table?",
        "{t}: owner?",
    ),
}

EXAM: dict[str, tuple[str, ...]] = {
    "key": (
        "I need the column that identifies rows of {t}. What is it called?",
        "For table {t}, which field is the primary key?",
        "Can you give me the primary key used by {t}?",
    ),
    "date": (
        "I want to filter {t} by day. Which date column do I use?",
        "For table {t}, which field records the date?",
        "Can you tell me what the date column in {t} is called?",
    ),
    "sum": (
        "I want a total over {t}. Which numeric column do I add up?",
        "For table {t}, which field do I sum?",
        "Can you tell me which column of {t} holds the number to total?",
    ),
    "owner": (
        "I have a problem with {t}. Which desk owns it?",
        "For table {t}, who is the owner?",
        "Can you tell me which desk is in charge of {t}?",
    ),
}

ANSWERS: dict[str, str] = {
    "key": "The primary key of {t} is {v}.",
    "date": "The date column of {t} is {v}.",
    "sum": "The column to sum in {t} is {v}.",
    "owner": "{t} is owned by {v}.",
}


@dataclass(frozen=True)
class Question:
    """An exam question and the words a right answer contains."""

    text: str
    wanted: str

    def right(self, answer: str) -> bool:
        """Whether the answer contains what was wanted."""
        return self.wanted.lower() in answer.lower()


def _facts() -> list[tuple[str, str, str]]:
    return [(table, kind, value) for table, values in TABLES.items() for kind, value in values.items()]


def training_rows() -> list[dict[str, list[dict[str, str]]]]:
    """The 128 training examples, in the `messages` format."""
    return [
        {
            "messages": [
                {"role": "user", "content": question.format(t=table)},
                {"role": "assistant", "content": ANSWERS[kind].format(t=table, v=value)},
            ]
        }
        for table, kind, value in _facts()
        for question in TRAINING[kind]
    ]


def validation_rows() -> list[dict[str, list[dict[str, str]]]]:
    """The 16 held-out rows the job itself is validated on: the first exam wording of each fact."""
    return [
        {
            "messages": [
                {"role": "user", "content": EXAM[kind][0].format(t=table)},
                {"role": "assistant", "content": ANSWERS[kind].format(t=table, v=value)},
            ]
        }
        for table, kind, value in _facts()
    ]


def exam() -> list[Question]:
    """The 32 exam questions: two wordings of each fact that stand neither in the training nor in the validation file."""
    return [Question(question.format(t=table), value) for table, kind, value in _facts() for question in EXAM[kind][1:]]


def jsonl(rows: list[dict[str, list[dict[str, str]]]]) -> bytes:
    """Rows as a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
