"""One connection that listens: a NOTIFY shortens a wait. What it says is never trusted; polling is the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import make_conninfo

from app.settings import Settings

RECONNECT_SECONDS = 1.0

log = structlog.get_logger("listen")


async def listen(settings: Settings, channels: dict[str, Callable[[str], None]]) -> None:
    """Call a channel's function with each payload, for ever. After a lost connection every function is called once.

    Args:
        settings: Name the database.
        channels: Function by channel; it must not block.
    """
    url = make_conninfo(
        settings.sqlalchemy_url.replace("+psycopg", "", 1), connect_timeout=5, application_name="llamaflow-listen",
        keepalives_idle=30, keepalives_interval=10, keepalives_count=3,
    )  # fmt: skip
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
                for channel in channels:
                    await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                for call in channels.values():
                    call("")  # whatever was said while nobody listened
                async for notify in connection.notifies():
                    channels[notify.channel](notify.payload)
        except (psycopg.Error, OSError) as problem:
            log.warning("not_listening", error=str(problem).splitlines()[0][:200] if str(problem) else repr(problem))
        await asyncio.sleep(RECONNECT_SECONDS)
