"""HTTP as uvicorn reads it, with an end to patience: a head has to come soon and be small, an answer has to be taken.

Without this a connection that never finishes its headers is held for ever, and headers may fill the memory; both before
anybody was asked for a key. May touch uvicorn's protocol, nothing else.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import HeadTooLarge

MAX_HEAD = 64 << 10
HEAD_SECONDS = 20.0
TAKE_SECONDS = 60.0
SLICE = 16 << 10


class PatientProtocol(HttpToolsProtocol):
    """Closes a connection whose next head is over MAX_HEAD bytes, or has not come whole after HEAD_SECONDS.

    Cuts one whose client takes nothing of an answer for TAKE_SECONDS: whatever is waited for or kept for it is let go.
    """

    _head = 0
    _in_head = True
    _patience: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_waiting()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came. A head is read in slices, so that its size is known before it is kept."""
        if not self._in_head:
            super().data_received(data)
            return
        if self._patience is None:
            self._wait_for_head()
        for start in range(0, len(data), SLICE):
            part = data[start : start + SLICE]
            self._head += len(part) if self._in_head else 0
            super().data_received(part)
            if self._in_head and self._head > MAX_HEAD:
                self._refuse()
            if self.transport.is_closing():
                return

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._head = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is whole: what comes next is a head."""
        super().on_message_complete()
        self._in_head, self._head = True, 0

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._taken()
        self._taking = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken enough."""
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _hang_up(self) -> None:
        self._patience = None
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self) -> None:
        error = HeadTooLarge(
            f"The headers of a request may have at most {MAX_HEAD:,} bytes.", code="headers_too_large"
        ).body()
        body = json.dumps(error).encode()
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._hang_up()
