"""A client of live streams that is nothing but a socket's reader: what came, in order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sent:
    """One server-sent event; a comment has only `comment`."""

    id: int | None = None
    event: str = ""
    data: str = ""
    retry: str = ""
    comment: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """The event as JSON."""
        return json.loads(self.data)


def parsed(lines: Iterable[str]) -> Iterator[Sent]:
    """Server-sent events out of lines without their ends."""
    fields: dict[str, Any] = {}
    for line in lines:
        if line.startswith(":"):
            yield Sent(comment=line[1:])
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = int(value) if name == "id" else value
        elif fields:
            yield Sent(**fields)
            fields = {}


def numbers(sent: Iterable[Sent | None]) -> list[int]:
    """The numbers of the events among what came."""
    return [each.id for each in sent if each is not None and each.id is not None]
