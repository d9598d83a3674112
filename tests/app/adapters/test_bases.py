"""Bases that a request names by their path: those below the folder of the operator's models file, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.adapters import bases
from app.errors import BadRequest

pytestmark = pytest.mark.unit


def test_a_request_names_a_base_by_its_path_only_below_the_operators_folder(tmp_path: Path) -> None:
    (tmp_path / "bases" / "mine").mkdir(parents=True)
    (tmp_path / "models.toml").write_text(f'folder = "{tmp_path}/bases"\n')
    known = bases.entries(tmp_path / "models.toml")
    assert bases.resolve(f"{tmp_path}/bases/mine", known).kind == "path"
    with pytest.raises(BadRequest, match="does not lie below") as caught:
        bases.resolve(f"{tmp_path}/bases/../models.toml", known)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(BadRequest, match="none of its names"):
        bases.resolve(f"{tmp_path}/bases/mine", bases.entries(None))
