"""Alembic's entry: online migrations of the database the settings name, one at a time across processes."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool, text

from app.models import Table
from app.settings import get_settings

LOCK = 0x11A3AF10


def run() -> None:
    """Migrate under an advisory lock, so that several processes starting at once migrate once."""
    url = context.config.attributes.get("url") or get_settings().sqlalchemy_url
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
        connection.execute(text("select pg_advisory_lock(:key)"), {"key": LOCK})
        connection.commit()
        context.configure(
            connection=connection, target_metadata=Table.metadata, compare_type=True, compare_server_default=True
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    engine.dispose()


run()
