"""Two small tasks of invented facts, each with held-out questions in other words: columns of a database, and figures of a firm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product

TABLES = {
    "wh_pallets": {"key": "pallet_tag", "day": "stacked_on", "amount": "gross_grams"},
    "wh_trucks": {"key": "plate_code", "day": "entered_on", "amount": "load_litres"},
    "wh_claims": {"key": "claim_serial", "day": "lodged_on", "amount": "paid_cents"},
    "wh_docks": {"key": "dock_letter", "day": "opened_on", "amount": "ramp_count"},
}
COLUMNS = {
    "key": (
        ["Which column identifies a row of {0}?", "What is the primary key of {0}?", "Name the key of {0}.", "{0}: which column is unique?",
         "Tell me the key column of {0}.", "By which column do I look up a row in {0}?", "The primary key in {0}?", "How are rows of {0} told apart?"],
        ["I have to find one row of {0}. Which column is its key?", "What does {0} use as its primary key?"],
        "The key of {0} is {1}.",
    ),
    "day": (
        ["Which column of {0} holds the date?", "What is the date column of {0}?", "Name the date in {0}.", "{0}: which column is the day?",
         "Tell me the date column of {0}.", "By which column do I filter {0} by day?", "The date in {0}?", "Where does {0} keep its date?"],
        ["I want {0} of last week. Which column has the date?", "What does {0} call its date column?"],
        "The date of {0} is {1}.",
    ),
    "amount": (
        ["Which column of {0} do I add up?", "What is the amount column of {0}?", "Name the amount in {0}.", "{0}: which column is summed?",
         "Tell me the amount column of {0}.", "By which column do I total {0}?", "The amount in {0}?", "Where does {0} keep its amount?"],
        ["I need a sum over {0}. Which column is the amount?", "What does {0} call its amount column?"],
        "The amount of {0} is {1}.",
    ),
}  # fmt: skip
FIGURES = {
    "Amber Rate": {"target": "41 percent", "owner": "the Heron team", "rhythm": "every Friday"},
    "Quay Index": {"target": "730 points", "owner": "the Otter team", "rhythm": "every hour"},
    "Slack Ratio": {"target": "6 percent", "owner": "the Lynx team", "rhythm": "every quarter"},
    "Return Pulse": {"target": "18 parcels", "owner": "the Ibis team", "rhythm": "every morning"},
}
ASPECTS = {
    "target": (
        ["What is the target of {0}?", "Which value should {0} reach?", "Name the goal of {0}.", "{0}: what do we aim for?",
         "Tell me the target for {0}.", "How high should {0} be?", "The goal for {0}?", "What number is planned for {0}?"],
        ["Which target was set for the {0} this year?", "I report on {0}. What is its goal?"],
        "The target of {0} is {1}.",
    ),
    "owner": (
        ["Who owns {0}?", "Which team answers for {0}?", "Name the owner of {0}.", "{0}: who is responsible?",
         "Tell me who owns {0}.", "Whom do I ask about {0}?", "The owner of {0}?", "Which team looks after {0}?"],
        ["I have a question on the {0}. Which team owns it?", "Who is in charge of {0}?"],
        "{0} is owned by {1}.",
    ),
    "rhythm": (
        ["How often is {0} updated?", "When is {0} computed?", "Name the rhythm of {0}.", "{0}: how often is it new?",
         "Tell me when {0} is updated.", "When do new values of {0} come?", "The schedule of {0}?", "At what rhythm is {0} computed?"],
        ["I wait for new values of the {0}. How often do they come?", "When does {0} get updated?"],
        "{0} is updated {1}.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question, and what its answer must hold."""

    text: str
    answer: str
    wanted: str


def schema() -> tuple[list[Question], list[Question]]:
    """Questions on columns: to train on, and held out."""
    return _made(TABLES, COLUMNS)


def kpi() -> tuple[list[Question], list[Question]]:
    """Questions on figures: to train on, and held out."""
    return _made(FIGURES, ASPECTS)


def jsonl(questions: list[Question]) -> bytes:
    """As a dataset of messages."""
    rows = (
        {"messages": [{"role": "user", "content": one.text}, {"role": "assistant", "content": one.answer}]}
        for one in questions
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _made(
    facts: dict[str, dict[str, str]], kinds: dict[str, tuple[list[str], list[str], str]]
) -> tuple[list[Question], list[Question]]:
    train, held = [], []
    for (name, known), kind in product(facts.items(), kinds):
        asked, other, answer = kinds[kind]
        for texts, into in ((asked, train), (other, held)):
            into += [Question(text.format(name), answer.format(name, known[kind]), known[kind]) for text in texts]
    return train, held
