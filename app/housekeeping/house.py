"""What every duty is given, and how lines are worded."""

from __future__ import annotations

from dataclasses import dataclass

from app.db import Database
from app.settings import Settings


@dataclass(frozen=True)
class House:
    """The service whose house is kept. dry_run: tell what would be done, and do nothing."""

    settings: Settings
    database: Database
    dry_run: bool = False

    def did(self, done: str, would: str) -> str:
        """`done`, or in a dry run `Would …`."""
        return f"Would {would}" if self.dry_run else done


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 file`, `3 files`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
