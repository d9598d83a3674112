"""The gate of `make test` closes for a tier that shows nothing."""

from __future__ import annotations

import pytest

from scripts.run_tests import verdict

pytestmark = pytest.mark.unit

GOOD = {"tests": 3.0, "failures": 0.0, "errors": 0.0, "skipped": 0.0, "status": 0.0, "seconds": 1.0}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, ""),
        ({"tests": 0.0, "status": 5.0}, "db collected nothing"),
        ({"skipped": 1.0}, "db skipped 1"),
        ({"failures": 1.0, "status": 1.0}, "db failed"),
        ({"status": 2.0}, "db failed"),
    ],
)
def test_a_tier_is_good_only_if_it_ran_and_passed_whole(counts: dict[str, float], said: str) -> None:
    assert verdict("db", GOOD | counts, slow=False) == said


def test_a_tier_without_slow_tests_is_no_fault() -> None:
    assert verdict("db", GOOD | {"tests": 0.0, "status": 5.0}, slow=True) == ""
