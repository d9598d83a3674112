"""The API with an engine behind it of which the test decides what it sends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.app.conftest import Service, serving
from tests.app.inference.peer import Peer


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    engine = Peer()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def api(service: Service, peer: Peer) -> Iterator[str]:
    """The API with that engine behind it."""
    with serving(service.settings.model_copy(update={"engine_url": peer.url})) as url:
        yield url
