"""A job's logs as they grow: the end of what is there, then each whole line as it comes, until the job has ended.

Reads the files again and again, a short while apart; for a client that takes slowly they are read slowly, and nothing is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from app.events.hub import Hub
from app.events.stream import came
from app.jobs.logs import BLOCK, Reader, Source

LOOK_SECONDS = 0.5
SOURCES_SECONDS = 5.0
"""So long after a stage began its log is followed at the latest; mostly an event tells of it at once."""


async def lines(
    hub: Hub, job_id: str, key_id: str, find: Callable[[], Awaitable[list[Source]]], reader: Reader, tail: int | None
) -> AsyncGenerator[bytes]:
    """The job's logs as they come.

    Args:
        key_id: On whose behalf; it ends when that key is revoked.
        find: The logs there are by now.
        tail: Lines of each log that is there already; None for as many as a MiB holds.
    """
    follower = Follower(tail)
    loop = asyncio.get_running_loop()
    with hub.following(job_id, key_id) as channel:
        found, told, found_at = await find(), channel.last, loop.time()
        news = channel.news()
        while not hub.is_over(key_id):
            news, ended = channel.news() if news.done() else news, channel.ended
            async for shown in follower.new(found, replace(reader, over=reader.over or ended)):
                yield shown
                if hub.is_over(key_id):
                    return
            if ended:
                return
            await came(news, LOOK_SECONDS)
            if channel.last != told or loop.time() - found_at > SOURCES_SECONDS:
                found, told, found_at = await find(), channel.last, loop.time()


class Follower:
    """How far each log was shown, and under which heading the last line stood.

    Args:
        tail: As of `lines`.
    """

    def __init__(self, tail: int | None) -> None:
        self._tail = tail
        self._reached: dict[str, int] = {}
        self._first = True
        self._heading = ""
        self._whole = True

    async def new(self, found: list[Source], reader: Reader) -> AsyncGenerator[bytes]:
        """What came since the last call, in pieces; a heading says whose lines follow."""
        for source in [each for each in found if each.text is not None]:
            async for shown in self._of(source, reader):
                yield shown
        self._first = False

    async def _of(self, source: Source, reader: Reader) -> AsyncGenerator[bytes]:
        text = source.text
        assert text is not None  # noqa: S101  asked for by the caller
        if text.where not in self._reached:
            self._reached[text.where] = await reader.begin(text, self._tail) if self._first else 0
        while True:
            shown, reached = await reader.page(text, self._reached[text.where], BLOCK)
            if reached == self._reached[text.where]:
                return
            self._reached[text.where] = reached
            head = ""
            if source.name != self._heading:
                head = ("" if self._whole else "\n") + f"== {source.name}\n"
            self._heading, self._whole = source.name, shown.endswith("\n")
            yield (head + shown).encode()
