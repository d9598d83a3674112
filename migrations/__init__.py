"""Alembic migrations; `llamaflow migrate` runs them. A new one: `python -m migrations "what changes"`."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config


def config(url: str | None = None) -> Config:
    """Alembic's configuration for this folder; `url` instead of the settings' database."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.set_main_option("path_separator", "os")
    made.attributes["url"] = url
    return made


def upgrade(url: str | None = None) -> None:
    """Bring the database to the newest schema."""
    command.upgrade(config(url), "head")
