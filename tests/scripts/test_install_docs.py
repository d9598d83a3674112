"""The troubles in docs/install.md are those the code speaks of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SPEAKERS = ["Makefile", "scripts/bootstrap.py", "app/nextflow/jars.py", "app/embedded/*.py"]


def fragments() -> list[str]:
    """The literal parts of each message in the first column of the table of troubles."""
    table = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").partition("## Troubles")[2]
    cells = re.findall(r"^\| (`[^|]*`) \|", table, flags=re.MULTILINE)
    parts = [
        part.strip() for cell in cells for said in re.findall("`([^`]+)`", cell) for part in re.split(r"…|<\w+>", said)
    ]
    return [part for part in parts if part]


@pytest.mark.parametrize("said", fragments())
def test_a_trouble_is_one_the_code_speaks_of(said: str) -> None:
    sources = " ".join(path.read_text(encoding="utf-8") for pattern in SPEAKERS for path in ROOT.glob(pattern))
    assert said in re.sub(r'"\s*\n\s*f?"', "", sources)


def test_the_table_is_found() -> None:
    assert len(fragments()) > 10
