"""The proxy to the engine against a peer that fails in every way a process can: absent, refusing, dying, silent, slow to be read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.errors import ApiError, BadRequest, Conflict, NotFound, TooMany, Unavailable
from app.inference.engines import HttpEngine, NoEngine, Served
from finetune.steps import ModelSource

pytestmark = pytest.mark.unit

SERVED = Served(ModelSource(id="b", kind="hub", location="o/b"))
BODY: dict[str, Any] = {"model": "b", "messages": [{"role": "user", "content": "a"}]}
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

Play = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(content: bytes) -> bytes:
    """One piece of a chunked body."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def answer(status: int, body: Any, *headers: str) -> bytes:
    """A whole response."""
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


@asynccontextmanager
async def peer(play: Play) -> AsyncIterator[HttpEngine]:
    """An engine that reads one request and then does what `play` says, and the proxy to it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await play(head + await reader.readexactly(size), reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    engine = HttpEngine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "secret")
    try:
        yield engine
    finally:
        await engine.close()
        server.close()


def says(response: bytes) -> Play:
    """Answers with these bytes and hangs up."""

    async def play(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await writer.drain()

    return play


async def test_the_engine_is_told_base_and_adapter_and_shown_the_token() -> None:
    seen: list[bytes] = []

    async def play(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(answer(200, {"id": "chatcmpl-1"}))
        await writer.drain()

    served = Served(SERVED.base, {"id": "ft:x", "uri": "s3://b/k/adapter/", "manifest_uri": "s3://b/k/manifest.json"})
    async with peer(play) as engine:
        assert await engine.complete(BODY, served) == {"id": "chatcmpl-1"}
    head, _, content = seen[0].partition(b"\r\n\r\n")
    assert b"authorization: bearer secret" in head.lower()
    assert json.loads(content) == BODY | {"llamaflow": served.as_json()}


@pytest.mark.parametrize(
    ("status", "kind"), [(400, BadRequest), (404, NotFound), (409, Conflict), (429, TooMany), (503, Unavailable)]
)
async def test_the_engines_refusals_are_passed_on(status: int, kind: type[ApiError]) -> None:
    error = {"message": "No.", "type": "t", "param": "tools", "code": "unsupported_parameter"}
    for ask in (HttpEngine.complete, HttpEngine.stream):
        async with peer(says(answer(status, {"error": error}, "retry-after: 7"))) as engine:
            with pytest.raises(kind) as refused:
                await ask(engine, BODY, SERVED)
        assert (refused.value.message, refused.value.param, refused.value.code) == (
            "No.",
            "tools",
            "unsupported_parameter",
        )
        assert refused.value.headers() == {"retry-after": "7"}


@pytest.mark.parametrize(
    "response",
    [answer(401, {"error": {"message": "token"}}), answer(500, {"error": {"message": "boom"}}), answer(404, "what")],
)
async def test_an_engine_that_is_set_up_wrong_is_no_fault_of_the_caller(response: bytes) -> None:
    async with peer(says(response)) as engine:
        with pytest.raises(ApiError) as failed:
            await engine.complete(BODY, SERVED)
    assert (failed.value.status, failed.value.code) == (500, "engine_error")


async def test_an_absent_engine_is_503_with_a_time_to_wait() -> None:
    async with peer(says(b"")) as engine:
        pass
    gone = HttpEngine(engine.url, None)
    for ask in (gone.complete, gone.stream, NoEngine().complete, NoEngine().stream):
        with pytest.raises(Unavailable) as refused:
            await ask(BODY, SERVED)
        assert refused.value.code == "engine_unavailable"
        assert 1 <= int(refused.value.headers()["retry-after"]) <= 60
    await gone.close()


async def test_an_engine_that_dies_in_a_stream_leaves_an_error_event() -> None:
    async with peer(says(EVENTS + chunk(b"data: 1\n\n"))) as engine:
        stream = await engine.stream(BODY, SERVED)
        events = b"".join([part async for part in stream]).split(b"\n\n")
        await stream.close()
    assert events[0] == b"data: 1"
    assert json.loads(events[1].removeprefix(b"data: "))["error"]["code"] == "engine_unavailable"


async def test_an_engine_that_dies_before_it_answers_is_503() -> None:
    for response in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{"):
        async with peer(says(response)) as engine:
            with pytest.raises(Unavailable):
                await engine.complete(BODY, SERVED)


async def test_closing_a_stream_hangs_up_on_the_engine() -> None:
    hung_up = asyncio.Event()

    async def play(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EVENTS + chunk(b"data: 1\n\n"))
        assert await reader.read() == b""
        hung_up.set()

    async with peer(play) as engine:
        stream = await engine.stream(BODY, SERVED)
        assert await anext(aiter(stream)) == b"data: 1\n\n"
        await stream.close()
        await asyncio.wait_for(hung_up.wait(), 10)


async def test_cancelling_a_whole_answer_hangs_up_on_the_engine() -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def play(request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        assert await reader.read() == b""
        hung_up.set()

    async with peer(play) as engine:
        asking = asyncio.ensure_future(engine.complete(BODY, SERVED))
        await asyncio.wait_for(asked.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(hung_up.wait(), 10)
