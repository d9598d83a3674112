"""A job's events as a stream that a client may cut and resume: server-sent events, oldest first, `id` = the event's number.

Ends by itself behind the terminal event, with `data: [DONE]` as OpenAI's streams do. No more is read than the client takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager

import structlog
from anyio import CancelScope
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.types import Receive, Scope, Send

from app.db import is_outage
from app.events.hub import Channel, Hub, Told, joined

RETRY = b"retry: 2000\n"
"""Milliseconds after which a browser's EventSource comes again. Without an empty line, which official clients take for an event."""
HEARTBEAT = b": still here\n"
DONE = b"event: done\ndata: [DONE]\n\n"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
OUTAGE_SECONDS = 1.0

log = structlog.get_logger("events")


class Live(StreamingResponse):
    """An answer that goes on for long: holds a place while it does, and is closed however it ends."""

    def __init__(self, content: AsyncGenerator[bytes], *, place: AbstractContextManager[None], media_type: str) -> None:
        super().__init__(content, media_type=media_type, headers=HEADERS)
        self._content, self._place = content, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._place:
            try:
                await super().__call__(scope, receive, send)
            finally:
                with CancelScope(shield=True):
                    await self._content.aclose()


async def told(hub: Hub, job_id: str, key_id: str, *, after: int) -> AsyncGenerator[bytes]:
    """The job's events behind number `after` as they come, and a comment where there are none for long.

    Args:
        key_id: On whose behalf; the stream ends when it is revoked.
    """
    yield RETRY
    with hub.following(job_id, key_id) as channel:
        while not hub.is_over(key_id):
            found = channel.after(after) or await _older(hub, channel, job_id, after)
            if found.seq > after:
                after = found.seq
                yield found.frame
            elif channel.last > after:  # the database was away, or something came while it was asked
                continue
            elif channel.ended:
                yield DONE
                return
            elif not await channel.news():
                yield HEARTBEAT


async def came(news: asyncio.Future[bool], seconds: float) -> bool:
    """Whether something came within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await news
    except TimeoutError:
        return False


async def _older(hub: Hub, channel: Channel, job_id: str, after: int) -> Told:
    """What is to be sent next where the channel does not reach back so far: from the database, or what it keeps if that has no more."""
    last = channel.last
    try:
        found = await hub.older(job_id, after) or [each for each in channel.recent() if each.seq > after]
        return joined(found) if found else Told(last, b"")
    except (DBAPIError, PoolTimeout, ConnectionError, TimeoutError) as problem:
        if not is_outage(problem) and not isinstance(problem, PoolTimeout):
            raise
        log.warning("history_not_read", error=type(problem).__name__)
        await asyncio.sleep(OUTAGE_SECONDS)
        return Told(after, b"")
