"""The gate's arithmetic: what passes, what does not, and how sure the difference is. Hand-made scores, no model."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from finetune.config import Gate
from finetune.evaluate import forgetting, gate, step
from finetune.evaluate.scores import Rows, chrf, contains, exact_match, of_answers
from finetune.steps import EvaluationResult, Forgetting, GateResult, Parent

pytestmark = pytest.mark.unit

VERSION = Parent(id="ft:tiny:default:kpi:1", uri="s3://x/adapter/", manifest_uri="s3://x/manifest.json")
HALF = [1.0, 0.0] * 20
MOST = [1.0] * 36 + [0.0] * 4


def decided(candidate: list[float], base: list[float], current: list[float] | None = None, **asked: Any) -> GateResult:
    metric = asked.setdefault("metric", "exact_match")
    scores = [None if rows is None else {metric: of_answers(rows)} for rows in (candidate, base, current)]
    assert scores[0] is not None
    assert scores[1] is not None
    return gate.decide(Gate(**asked), scores[0], scores[1], scores[2], VERSION if current else None, seed=1)


@pytest.mark.parametrize(
    ("candidate", "base", "current", "asked", "passed", "reason"),
    [
        (MOST, HALF, None, {}, True, "exact_match 0.9 > 0.5"),
        (HALF, HALF, None, {}, False, "exact_match 0.5 the same as 0.5"),
        (HALF, HALF, None, {"min_delta": 0.0, "min": 0.5}, False, "the same as"),
        (HALF, MOST, None, {}, False, "exact_match 0.5 compared with 0.9"),
        (MOST, HALF, None, {"min": 0.95}, False, "below the 0.95 asked for"),
        (MOST, HALF, None, {"min": 0.9}, True, "0.9 > 0.5"),
        (MOST, HALF, None, {"min_delta": 0.4}, False, "by 0.4 and not by more than 0.4"),
        (MOST, HALF, MOST, {}, True, "0.9 > 0.5"),
        (MOST, HALF, MOST, {"better_than": "current"}, False, "the same as 0.9"),
        (MOST, HALF, HALF, {"better_than": "current"}, True, "0.9 > 0.5"),
        (MOST, HALF, None, {"better_than": "current"}, True, "0.9 > 0.5"),
        ([0.4] * 40, [0.5] * 40, None, {"metric": "loss"}, True, "loss 0.4 < 0.5"),
        ([0.5] * 40, [0.5] * 40, None, {"metric": "loss"}, False, "the same as"),
        ([], [], None, {}, False, "no held-out row has what exact_match needs"),
    ],
)
def test_point_estimates_decide(
    candidate: list[float], base: list[float], current: list[float] | None, asked: dict[str, Any], passed: bool, reason: str
) -> None:  # fmt: skip
    found = decided(candidate, base, current, **asked)
    assert found.passed is passed, found.reason
    assert reason in found.reason


def test_what_was_compared_with_is_told() -> None:
    against = decided(MOST, HALF, HALF, better_than="current")
    assert (against.compared_with, against.current) == ("current", VERSION)
    assert against.scores == {name: {"exact_match": value} for name, value in
                              (("candidate", 0.9), ("base", 0.5), ("current", 0.5))}  # fmt: skip
    alone = decided(MOST, HALF, better_than="current")
    assert (alone.compared_with, alone.current) == ("base", None)


def test_a_difference_that_may_be_chance_is_reported_and_decides_only_when_asked_to() -> None:
    little = [*HALF[:-1], 1.0]
    found = decided(little, HALF)
    assert found.passed
    assert found.interval is not None
    assert found.interval[0] <= 0 < found.interval[1]
    sure = decided(little, HALF, confidence=0.95)
    assert not sure.passed
    assert "at 95% the difference may be 0" in sure.reason
    assert decided(MOST, HALF, confidence=0.95).passed


def test_rows_are_drawn_in_pairs_and_a_seed_draws_them_again() -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(200)
    weights = rng.integers(1, 9, 200).astype(np.float64)
    one, other = Rows(hard * weights, weights), Rows((hard + 0.1) * weights, weights)
    draws = gate.bootstrap(other, one, seed=7)
    assert draws == pytest.approx(np.full(gate.TURNS, 0.1))  # unpaired the spread of `hard` would show
    assert (gate.bootstrap(one, Rows(hard[::-1] * weights, weights), 7) == gate.bootstrap(one, Rows(hard[::-1] * weights, weights), 7)).all()  # fmt: skip
    assert gate.interval(np.arange(1001.0), 0.95) == pytest.approx((25, 975))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(11), 0
    for _ in range(200):
        both = rng.random(60)
        mine, theirs = of_answers((both < 0.8).astype(float)), of_answers((both < 0.6).astype(float))
        low, high = gate.interval(gate.bootstrap(mine, theirs, 1, turns=400), 0.95)
        covered += low <= 0.2 <= high
    assert 0.85 <= covered / 200 <= 1.0


@pytest.mark.parametrize(
    ("said", "exact", "within", "characters"),
    [("Blue.", 1, 1, 1.0), (" Blue. ", 1, 1, 1.0), ("It is blue. Or so.", 0, 1, 0.4), ("blue", 0, 0, 0.5), ("", 0, 0, 0)],
)  # fmt: skip
def test_an_answer_is_compared_with_what_was_wanted(said: str, exact: float, within: float, characters: float) -> None:
    assert exact_match(["Blue."], [said]).value == exact
    assert contains(["Blue."], [said]).value == within
    assert chrf(["Blue."], [said]).value == pytest.approx(characters, abs=0.25)


def test_scores_need_no_torch() -> None:
    code = "import sys; from finetune.evaluate import gate, scores; scores.chrf(['a b'], ['a c']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_became_less_likely_is_told_and_named() -> None:
    questions = [question for question, _ in forgetting.general()]
    assert len(questions) == len(set(questions)) >= 30
    before, weights = np.full(len(questions), 2.0), np.full(len(questions), 2.0)
    after = before.copy()
    after[3] += 60
    found = forgetting.compared(Rows(after, weights), Rows(before, weights), questions)
    assert found == Forgetting(
        prompts=len(questions), loss=1 + 30 / len(questions), base_loss=1.0, drift=30 / len(questions),
        worst=questions[3], worst_drift=30.0,
    )  # fmt: skip
    assert questions[3] in step.forgotten(found)
    assert step.forgotten(found.model_copy(update={"drift": step.FORGOTTEN})) == ""


def test_the_sentence_says_what_the_gate_found() -> None:
    told = step.sentence(
        EvaluationResult(rows=40, exact_match=0.9, gate=decided(MOST, HALF, HALF, better_than="current"))
    )
    assert told.startswith(
        "Evaluated on 40 held-out rows: exact match 0.90. The gate: exact_match 0.9 > 0.5, against ft:"
    )
    assert "difference +0.4, 95 % interval +0." in told
