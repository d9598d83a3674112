"""The engine over HTTP: OpenAI's chat completions, streamed or whole, for the service that stands before it.

Bearer token on everything but /healthz. Every error is `{"error": {message, type, param, code}}`; after a stream has begun it
is an event of the stream. A client that hangs up stops the computing of its answer.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from finetune.inference import request as wire
from finetune.inference.answering import Answering, Done
from finetune.inference.engine import Engine
from finetune.inference.errors import EngineError, bad
from finetune.inference.generation import Piece
from finetune.inference.merging import Merge

MAX_BODY = 8 << 20
PING_SECONDS = 10.0
"""Silence after which a comment is sent, and after which a stream begins although there is no token yet."""


def create_app(engine: Engine, token: str | None, *, ping_seconds: float = PING_SECONDS) -> FastAPI:
    """The engine's application.

    Args:
        engine: Started and closed with the application.
        token: What callers must show; None for nothing (only behind loopback).
        ping_seconds: See `PING_SECONDS`.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(EngineError, _on_engine_error)
    app.add_exception_handler(HTTPException, _on_http_exception)

    async def authenticate(request: Request) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if token is not None and not hmac.compare_digest(shown, token.encode()):
            raise EngineError(401, "The engine's token is missing or wrong.", code="invalid_api_key")

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", **engine.status()}

    @app.post("/unload", dependencies=[Depends(authenticate)])
    async def unload() -> dict[str, str]:
        await engine.unload()
        return {"status": "unloaded"}

    @app.post("/v1/chat/completions", dependencies=[Depends(authenticate)])
    async def chat(request: Request) -> Response:
        answering = await engine.submit(wire.parse(await _body(request)))
        reply = Reply(engine, answering)
        return await (reply.streamed(ping_seconds) if answering.request.stream else reply.whole(request))

    @app.post("/v1/adapters/merge", dependencies=[Depends(authenticate)])
    async def merge(request: Request) -> dict[str, Any]:
        try:
            asked = Merge.model_validate(await _body(request))
        except ValidationError as problem:
            raise bad(f"The merge cannot be understood: {problem.errors()[0]['msg']}.", None) from None
        return await engine.merge(asked)

    return app


class Reply:
    """One answer on its way out, in OpenAI's shapes (`ChatCompletion`, `ChatCompletionChunk`)."""

    def __init__(self, engine: Engine, answering: Answering) -> None:
        self._engine, self._answering = engine, answering
        self._id = "chatcmpl-" + secrets.token_hex(12)
        self._created = int(time.time())

    async def whole(self, request: Request) -> Response:
        """The completion in one piece. 499 if the client is gone before."""
        collecting = asyncio.ensure_future(self._collect())
        hung_up = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait({collecting, hung_up}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(collecting.result()) if collecting.done() else Response(status_code=499)
        finally:
            collecting.cancel()
            hung_up.cancel()
            self._engine.release(self._answering)

    async def streamed(self, ping_seconds: float) -> Response:
        """The completion as server-sent events. What fails before the first token, soon enough, is still a plain error."""
        try:
            first = await self._answering.next(ping_seconds)
        except BaseException:
            self._engine.release(self._answering)
            raise
        return _Stream(self._frames(first, ping_seconds), lambda: self._engine.release(self._answering))

    async def _collect(self) -> dict[str, Any]:
        texts, reasons = [""] * self._answering.request.n, ["length"] * self._answering.request.n
        while not isinstance(event := await self._answering.next(), Done):
            if event is not None:
                texts[event.index] += event.text
                reasons[event.index] = event.reason or reasons[event.index]
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": _usage(event)} | self._told()

    async def _frames(self, first: Piece | Done | None, ping_seconds: float) -> AsyncIterator[bytes]:
        """The stream: a role chunk an answer, its pieces, why it ended, perhaps the usage, `[DONE]`."""
        for index in range(self._answering.request.n):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None)
        event = first
        try:
            while not isinstance(event, Done):
                if event is None:
                    yield b": ping\n\n"
                elif event.text:
                    yield self._chunk(event.index, {"content": event.text}, None)
                if event is not None and event.reason:
                    yield self._chunk(event.index, {}, event.reason)
                event = await self._answering.next(ping_seconds)
        except EngineError as problem:
            yield _frame(problem.body())
            return
        if self._answering.request.stream_options.include_usage:
            yield _frame(self._head("chat.completion.chunk") | {"choices": [], "usage": _usage(event)})
        yield b"data: [DONE]\n\n"

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage: dict[str, Any] = {"usage": None} if self._answering.request.stream_options.include_usage else {}
        told = self._told() if reason else {}
        return _frame(self._head("chat.completion.chunk") | {"choices": [choice]} | usage | told)

    def _told(self) -> dict[str, Any]:
        """`llamaflow`: how a combination chose what answers; with the last chunk of a streamed answer."""
        settled = self._answering.settled
        return {"llamaflow": settled.told} if settled is not None and settled.told is not None else {}

    def _head(self, kind: str) -> dict[str, Any]:
        fingerprint = self._answering.fingerprint
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._answering.request.model,
            "system_fingerprint": fingerprint,
        }


class _Stream(StreamingResponse):
    """Server-sent events, and what to do when they are over, however they end: even before they began."""

    def __init__(self, frames: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        super().__init__(frames, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _body(request: Request) -> Any:
    """The decoded JSON, at most `MAX_BODY` bytes of it."""
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY:
            raise EngineError(413, f"The body is larger than {MAX_BODY >> 20} MiB.", code="request_too_large")
    try:
        return json.loads(received)
    except (ValueError, RecursionError):
        raise bad("The body is no valid JSON.", None, "invalid_json") from None


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _frame(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _usage(done: Done) -> dict[str, int]:
    total = done.prompt_tokens + done.completion_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens, "total_tokens": total}


async def _on_engine_error(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, EngineError)  # noqa: S101  registered for nothing else
    return JSONResponse(problem.body(), problem.status, problem.headers())


async def _on_http_exception(_request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)  # noqa: S101  registered for nothing else
    code = "method_not_allowed" if problem.status_code == 405 else "not_found"
    return JSONResponse(EngineError(problem.status_code, f"{problem.detail}.", code=code).body(), problem.status_code)
