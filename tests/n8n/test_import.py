"""The files as they are shipped."""

from __future__ import annotations

import pytest

from tests.n8n.canvas import FILES
from tests.n8n.conftest import ERRORS, Site, workflow_id

pytestmark = [pytest.mark.n8n, pytest.mark.timeout(1800)]


def test_n8n_imports_every_file_as_it_is(site: Site) -> None:
    assert f"Successfully imported {len(FILES)} workflows" in site.imported
    assert site.n8n.active() == {workflow_id(path.stem) for path in FILES} - {ERRORS}
