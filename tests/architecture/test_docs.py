"""What docs repeat is made from the code, or compared with it."""

from __future__ import annotations

import re

import pytest

from scripts import make_docs

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", make_docs.PAGES)
def test_a_page_made_from_the_code_is_not_stale(name: str) -> None:
    assert (make_docs.DOCS / name).read_text(encoding="utf-8") == make_docs.PAGES[name](), "run `make docs`"


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (make_docs.DOCS / "security.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    root = make_docs.DOCS.parent
    assert [
        pair
        for pair in named
        if not re.search(rf"^(async )?def {pair[1]}\(", (root / pair[0]).read_text(), re.MULTILINE)
    ] == []
