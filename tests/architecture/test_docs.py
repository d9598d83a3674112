"""What docs repeat is made from the code, or compared with it."""

from __future__ import annotations

import pytest

from scripts import make_docs

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", make_docs.PAGES)
def test_a_page_made_from_the_code_is_not_stale(name: str) -> None:
    assert (make_docs.DOCS / name).read_text(encoding="utf-8") == make_docs.PAGES[name](), "run `make docs`"
