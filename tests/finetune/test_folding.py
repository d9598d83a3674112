"""Long lines of output are broken, whatever else stays as it is."""

from __future__ import annotations

import sys

import pytest

from finetune.folding import WIDTH, folded

pytestmark = pytest.mark.unit


def test_a_long_line_is_broken_and_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with folded():
        print("short")
        print("x" * (2 * WIDTH + 1), file=sys.stderr)
        print("y" * WIDTH)
    said = capsys.readouterr()
    assert said.out == "short\n" + "y" * WIDTH + "\n"
    assert said.err.splitlines() == ["x" * WIDTH, "x" * WIDTH, "x"]
    print("z" * (2 * WIDTH))
    assert capsys.readouterr().out == "z" * (2 * WIDTH) + "\n"
