"""Tokenizers of all families, built once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import settings

from finetune.data.tokenizer import TextTokenizer, load
from tests.finetune.golden.families import FAMILIES, build

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's base."""
    root = tmp_path_factory.mktemp("families")
    return lru_cache(lambda name: build(FAMILIES[name], root / name))


@pytest.fixture(scope="session")
def tokenizer_of(base_of: Callable[[str], Path]) -> Callable[[str], TextTokenizer]:
    """The tokenizer of a family."""
    return lru_cache(lambda name: load(base_of(name)))
