"""The demonstration's dataset keeps its exam apart."""

from __future__ import annotations

import pytest

from app.demo import dataset

pytestmark = pytest.mark.unit


def test_no_exam_question_stands_in_the_training_or_validation_file() -> None:
    files = dataset.jsonl(dataset.training_rows() + dataset.validation_rows()).decode()
    assert len(dataset.exam()) == 32
    assert [question.text for question in dataset.exam() if question.text in files] == []


def test_every_answer_of_the_training_file_is_right() -> None:
    wanted = [value for values in dataset.TABLES.values() for value in values.values()]
    answers = [row["messages"][1]["content"] for row in dataset.training_rows()]
    assert len(answers) == 128
    assert all(any(value in answer for value in wanted) for answer in answers)
