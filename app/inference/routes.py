"""POST /v1/chat/completions: who asks, which model that is, and the engine's answer passed on as it comes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from anyio import CancelScope
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.auth import Reader
from app.db import Database
from app.inference.engines import Engine, Served, Stream
from app.inference.resolve import find_model
from app.inference.schemas import ChatCompletion, ChatCompletionCreate
from app.settings import Settings

router = APIRouter(prefix="/v1", tags=["Chat"])


def engine_of(request: Request) -> Engine:
    """The application's engine."""
    found: Engine = request.app.state.engine
    return found


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatCompletion,
        "description": "The completion; with `stream: true` a stream of server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post("/chat/completions", summary="Ask a model", response_model=None, responses=ANSWERS)
async def create_chat_completion(
    body: ChatCompletionCreate, caller: Reader, request: Request, engine: Annotated[Engine, Depends(engine_of)]
) -> Response:
    """Ask a base, a fine-tuned model, an adapter by its name, or a checkpoint; whole or as a stream of server-sent events.

    A parameter that is not honoured is refused by name. Hanging up stops the computing.
    """
    database: Database = request.app.state.database
    settings: Settings = request.app.state.settings
    async with database.transaction() as db:  # not the request's: it would be held as long as the answer takes
        served = await find_model(db, caller, body.model, models_file=settings.models_file)
    asked = body.model_dump(exclude_unset=True)
    if body.stream:
        return PassedOn(await engine.stream(asked, served))
    return await _whole(request, engine, asked, served)


async def _whole(request: Request, engine: Engine, asked: dict[str, Any], served: Served) -> Response:
    """The completion; 499, which nobody reads, if the client is gone before."""
    completing = asyncio.ensure_future(engine.complete(asked, served))
    hung_up = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({completing, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(completing.result()) if completing.done() else Response(status_code=499)
    finally:
        hung_up.cancel()
        completing.cancel()


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
