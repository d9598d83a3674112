"""Chat completions of keys that keep them: stored when the answer is whole, so that feedback can name them. Deleted when they expire.

A key keeps none unless it was told to (`llamaflow keys set --keep-completions`). What cannot be stored is logged, never an error
of the request: the answer was given.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from app.auth import Caller
from app.db import Database
from app.errors import BadRequest
from app.inference.engines import Served, Stream
from app.models import Completion
from app.validation import unstorable

LINE_BYTES = 1 << 20
"""A longer line of a stream is passed on, and its completion not kept."""

log = structlog.get_logger("feedback")


@dataclass
class Keeper:
    """Keeps one request's completion, if its key does.

    Args:
        database: Where to.
        caller: Whose.
        model: As it was asked for.
        messages: What was asked.
        served: The `ft:` id that answers; None for a base.
        members: Of a combination: name → `ft:` id; the answer says who gave it.
        id: What the completion is called; None: as the engine calls it.
    """

    database: Database
    caller: Caller
    model: str
    messages: list[dict[str, Any]]
    served: str | None = None
    members: dict[str, str] = field(default_factory=dict)
    id: str | None = None
    _texts: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, database: Database, caller: Caller, asked: dict[str, Any], served: Served, *, id: str | None = None
    ) -> Keeper:
        """For a chat request and what answers it; id: what the answer is called where the engine's id is not told."""
        members = {row["name"]: row["adapter"]["id"] for row in (served.combination or {}).get("members", [])}
        answers = served.adapter["id"] if served.adapter else None
        return cls(database, caller, asked["model"], asked["messages"], answers, members, id)

    async def keep(self, completion: dict[str, Any]) -> None:
        """A whole completion."""
        if self.caller.keep_completions:
            for choice in completion.get("choices", []):
                self._texts[choice["index"]] = choice["message"].get("content") or ""
            self.id = self.id or completion.get("id")
            self._routed(completion)
            await self._store()

    def tapped(self, stream: Stream) -> Stream:
        """The same stream; its completion is kept when it has ended as it should."""
        return Tapped(stream, self) if self.caller.keep_completions else stream

    def take(self, line: bytes) -> bool:
        """A line of a stream; whether it was the last one."""
        if not line.startswith(b"data:"):
            return False
        data = line[5:].strip()
        if data == b"[DONE]":
            return True
        try:
            chunk = json.loads(data)
        except ValueError:
            return False
        self.id = self.id or chunk.get("id")
        self._routed(chunk)
        for choice in chunk.get("choices") or []:
            said = (choice.get("delta") or {}).get("content") or ""
            self._texts[choice["index"]] = self._texts.get(choice["index"], "") + said
        return False

    def _routed(self, told: dict[str, Any]) -> None:
        chosen = (told.get("llamaflow") or {}).get("adapter")
        if chosen in self.members:
            self.served = self.members[chosen]

    async def finish(self) -> None:
        """The stream has ended well."""
        await self._store()

    async def _store(self) -> None:
        if self.id is None or not self._texts:
            return
        answers = [self._texts.get(index, "") for index in range(max(self._texts) + 1)]
        kept = timedelta(seconds=self.caller.keep_completions or 0)
        row = {
            "id": self.id, "project_id": self.caller.project_id, "api_key_id": self.caller.key_id, "model": self.model,
            "served": self.served, "messages": [plain(turn) for turn in self.messages], "answers": answers,
            "expires_at": func.clock_timestamp() + kept,
        }  # fmt: skip
        try:
            unstorable([row["messages"], answers])
            async with self.database.transaction() as db:
                await db.execute(insert(Completion).values(row).on_conflict_do_nothing())
        except (SQLAlchemyError, OSError, BadRequest) as problem:
            log.warning("completion_not_kept", completion=self.id, error=type(problem).__name__)


class Tapped:
    """A stream whose lines are also read by a keeper."""

    def __init__(self, stream: Stream, keeper: Keeper) -> None:
        self._stream, self._keeper = stream, keeper

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """See Stream."""
        held, done = b"", False
        async for chunk in self._stream:
            held += chunk
            *lines, held = held.split(b"\n")
            for line in lines:
                done = self._keeper.take(line) or done
            if len(held) > LINE_BYTES:
                held = b""
            if done:
                await self._keeper.finish()
                done = False
            yield chunk

    async def close(self) -> None:
        """See Stream."""
        await self._stream.close()


def plain(turn: dict[str, Any]) -> dict[str, str]:
    """A turn with its content as one text; `developer` is the newer name of `system`."""
    content = turn.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    role = str(turn.get("role"))
    return {"role": "system" if role == "developer" else role, "content": str(content or "")}
