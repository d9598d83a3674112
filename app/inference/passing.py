"""Passing an engine's answer on: whole unless the client hangs up before, or as a stream that is closed however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from anyio import CancelScope
from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from app.inference.engines import Engine, Stream


def engine_of(request: Request) -> Engine:
    """The application's engine."""
    found: Engine = request.app.state.engine
    return found


def whole_or_streamed(model: type[BaseModel], what: str) -> dict[int | str, dict[str, Any]]:
    """How a route's answer is documented that is one object, or a stream if that is asked for."""
    return {
        200: {
            "model": model,
            "description": f"The {what}; with `stream: true` a stream of server-sent events.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    }


async def unless_hung_up(request: Request, completing: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any] | None:
    """What `completing` returns; None if the client is gone before, and then it is cancelled."""
    task = asyncio.ensure_future(completing)
    hung_up = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        hung_up.cancel()
        task.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class PassedOn(StreamingResponse):
    """An engine's stream, closed however it ends: no sooner read from the engine than the client takes it."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(aiter(stream), media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with CancelScope(shield=True):
                await self._stream.close()
