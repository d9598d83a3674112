"""Writes the parts of docs that are made from code: all of configuration.md, the exit codes of training.md (`make docs`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app.settings import ImportSettings, Settings
from finetune.exit_codes import TABLE

DOCS = Path(__file__).resolve().parent.parent / "docs"
MARK = "<!-- exit codes: made by `make docs` -->\n"

HEAD = """# Configuration

Everything is set by environment variables; `app/settings.py` is the only place of the service that reads them, and this page
is made from it (`make docs`). `make up` needs none of them. Lists are comma-separated.

| variable | default | meaning |
|---|---|---|
"""


def names(name: str, field: FieldInfo) -> list[str]:
    """The variables that set a field."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [alias] if isinstance(alias, str) else [f"LLAMAFLOW_{name.upper()}"]


def shown(value: Any) -> str:
    """A default as the table shows it."""
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, list):
        return f"`{','.join(value)}`" if value else ""
    return f"`{value}`"


def configuration() -> str:
    """The page on settings."""
    rows = [
        f"| {', '.join(f'`{one}`' for one in names(name, field))} | {shown(field.default)} | {field.description or name.replace('_', ' ')} |".replace(
            "<", "&lt;"
        )
        for name, field in (Settings.model_fields | ImportSettings.model_fields).items()
    ]
    return HEAD + "\n".join(rows) + "\n"


def training() -> str:
    """The page on training, with the table of exit codes as it is now."""
    head = (DOCS / "training.md").read_text(encoding="utf-8").partition(MARK)[0]
    rows = [
        f"| {code.status} | `{code.name}` | {code.fault} | {'again' if code.retry else ''} | {code.sentence} {code.remedy} |"
        for code in TABLE
    ]
    return (
        head
        + MARK
        + "\n| status | `error.code` | whose | retried | what it says |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )


PAGES = {"configuration.md": configuration, "training.md": training}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
