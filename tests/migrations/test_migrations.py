"""The migrations make exactly the tables of app/models.py, also from an older schema, and back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

import migrations
from app.embedded.postgres import start_postgres
from app.models import Table

pytestmark = pytest.mark.db


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = start_postgres(tmp_path_factory.mktemp("migrations"))
    yield server.url.replace("postgresql://", "postgresql+psycopg://")
    server.stop()


def difference(url: str) -> list[object]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True}),
            Table.metadata,
        )
    engine.dispose()
    return list(found)


def test_migrations_and_tables_agree(url: str) -> None:
    migrations.upgrade(url)
    assert difference(url) == []


def test_every_migration_can_be_undone_and_done_again(url: str, tmp_path: Path) -> None:
    migrations.upgrade(url)
    command.downgrade(migrations.config(url), "base")
    assert difference(url) != []
    migrations.upgrade(url)
    assert difference(url) == []
