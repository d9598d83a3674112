"""How large a request may be: bytes are counted as they come, whatever its headers say. Uploads count for themselves.

An ASGI layer inside the request's scope; it reads the body once and hands it on whole.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError, Stalled, TooLarge
from app.handlers import render
from app.validation import ambiguous

DRAIN_BYTES = 64 << 20
DRAIN_SECONDS = 5.0
UPLOADS = re.compile(r"/v1/(files|uploads/[^/]+/parts)")


class BodyLimit:
    """ASGI: refuses a body over `limit` bytes with 413, one that stops coming with 408; a multipart upload passes unread.

    JSON that two readers may take for two things (a name given twice, NaN) is refused with 400.
    """

    def __init__(self, app: ASGIApp, limit: int, stall_seconds: float) -> None:
        self.app, self.limit, self.stall_seconds = app, limit, stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or is_upload(scope):
            await self.app(scope, receive, send)
            return
        incoming = Incoming(receive, self.stall_seconds)
        try:
            async with asyncio.timeout(self.stall_seconds):
                body: bytes | None = await self._whole(incoming)
        except (ApiError, TimeoutError) as problem:
            refused = problem if isinstance(problem, ApiError) else stalled(self.stall_seconds)
            await incoming.drain()
            response = render(refused)
            response.headers["connection"] = "close"
            await response(scope, receive, send)
            return

        async def receive_again() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            whole, body = body, None
            return {"type": "http.request", "body": whole, "more_body": False}

        await self.app(scope, receive_again, send)

    async def _whole(self, incoming: Incoming) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in incoming:
            size += len(part)
            if size > self.limit:
                raise too_large(self.limit, "The body of a request")
            parts.append(part)
        body = b"".join(parts)
        ambiguous(body)
        return body


class Incoming:
    """A request's body on its way, read once: `async for chunk in incoming`.

    Args:
        receive: The request's.
        stall_seconds: How long nothing may come.
    Raises:
        ClientDisconnect: While iterating: the client hung up.
        Stalled: While iterating: `request_timeout`.
    """

    def __init__(self, receive: Receive, stall_seconds: float) -> None:
        self._receive, self._stall = receive, stall_seconds
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks as they come."""
        while not self._ended:
            try:
                async with asyncio.timeout(self._stall):
                    message = await self._receive()
            except TimeoutError:
                self._ended = True
                raise stalled(self._stall) from None
            if message["type"] == "http.disconnect":
                self._ended = True
                raise ClientDisconnect
            self._ended = not message.get("more_body", False)
            yield message.get("body", b"")

    async def drain(self) -> None:
        """Read on for a while and throw away, so that a client still sending gets to read the refusal."""
        size = 0
        with suppress(TimeoutError, ClientDisconnect, Stalled):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for chunk in self:
                    size += len(chunk)
                    if size > DRAIN_BYTES:
                        return


def is_upload(scope: Scope) -> bool:
    """Whether a request is a multipart upload, which is streamed and limited by its own route."""
    kind = Headers(scope=scope).get("content-type", "")
    return UPLOADS.fullmatch(scope["path"]) is not None and kind.lower().startswith("multipart/form-data")


def stalled(seconds: float) -> Stalled:
    """The refusal of a body that does not come."""
    return Stalled(f"The body did not come within {seconds:g} s. Send the request again.", code="request_timeout")


def too_large(limit: int, what: str) -> TooLarge:
    """The refusal of what is over `limit` bytes."""
    return TooLarge(f"{what} may have at most {limit:,} bytes.", code="request_too_large")
