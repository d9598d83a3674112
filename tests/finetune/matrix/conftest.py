"""Bases of every family, made once, on one thread of the CPU in float32."""

from __future__ import annotations

from functools import lru_cache

import pytest

from tests.finetune.matrix.shapes import Make, make
from tests.finetune.train.conftest import QUIET


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a family's base."""
    root = tmp_path_factory.mktemp("bases")
    return lru_cache(lambda name: make(name, root / name))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared to the bit is computed so."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
