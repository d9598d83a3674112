"""The Node client, unmodified, lives the same life."""

from __future__ import annotations

import asyncio

import pytest

from scripts import clients
from tests.conformance.conftest import Place
from tests.conformance.machine import HERE, outside

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(900)]


async def test_a_life_by_the_node_client(place: Place) -> None:
    port = place.callback.rpartition(":")[2]
    said = await asyncio.create_subprocess_exec(
        str(clients.node() / "node"), str(HERE / "life.mjs"), f"{place.url}/v1", place.key, place.secret, port,
        cwd=clients.FOLDER / "npm", env=outside(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    shown, _ = await said.communicate()
    assert (said.returncode, shown.decode()) == (0, "lived\n")
