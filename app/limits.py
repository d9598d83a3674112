"""How large a request may be: bytes are counted as they come, whatever its headers say. Uploads count for themselves.

An ASGI layer inside the request's scope; it reads the body once and hands it on whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import TooLarge
from app.handlers import render

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 5.0
UPLOADS = "/v1/files"


class BodyLimit:
    """ASGI: refuses a body over `limit` bytes with 413; a multipart upload passes unread."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or is_upload(scope):
            await self.app(scope, receive, send)
            return
        incoming = Incoming(receive)
        parts: list[bytes] = []
        size = 0
        async for part in incoming:
            size += len(part)
            if size > self.limit:
                await incoming.drain()
                response = render(too_large(self.limit, "The body of a request"))
                response.headers["connection"] = "close"
                await response(scope, receive, send)
                return
            parts.append(part)
        body: bytes | None = b"".join(parts)

        async def receive_again() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        await self.app(scope, receive_again, send)


class Incoming:
    """A request's body on its way, read once: `async for chunk in incoming`.

    Raises:
        ClientDisconnect: While iterating: the client hung up.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks as they come."""
        while not self._ended:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._ended = True
                raise ClientDisconnect
            self._ended = not message.get("more_body", False)
            yield message.get("body", b"")

    async def drain(self) -> None:
        """Read on for a while and throw away, so that a client still sending gets to read the refusal."""
        size = 0
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for chunk in self:
                    size += len(chunk)
                    if size > DRAIN_BYTES:
                        return


def is_upload(scope: Scope) -> bool:
    """Whether a request is a multipart upload, which is streamed and limited by its own route."""
    kind = Headers(scope=scope).get("content-type", "")
    return scope["path"] == UPLOADS and kind.lower().startswith("multipart/form-data")


def too_large(limit: int, what: str) -> TooLarge:
    """The refusal of what is over `limit` bytes."""
    return TooLarge(f"{what} may have at most {limit:,} bytes.", code="request_too_large")
