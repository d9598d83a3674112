"""The wire shape of events: OpenAI's, with every key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from app.models import Event as Row
from app.pages import Page


class Event(BaseModel):
    """What happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, row: Row) -> Event:
        """A row as clients see it."""
        return cls(
            id=row.id,
            created_at=int(row.created_at.timestamp()),
            level=row.level,
            message=row.message,
            type=row.type,
            data=row.data,
        )


class EventPage(Page):
    """Events, newest first."""

    data: list[Event]
