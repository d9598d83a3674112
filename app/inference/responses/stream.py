"""An engine's stream of chat chunks, told as the events of a response, in the order the official clients insist on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from app.inference.engines import Stream
from app.inference.responses.answer import Answer
from app.inference.responses.schemas import ModelResponse, OutputText

PING = b": ping\n\n"
MAX_EVENT_BYTES = 1 << 20

Keep = Callable[[ModelResponse], Awaitable[ModelResponse]]


class ResponseStream:
    """A response as server-sent events.

    Args:
        source: The engine's stream; closed with this one.
        answer: The response in the making.
        keep: Called with the whole response before its last events are sent; returns it as it is to be told.
    """

    def __init__(self, source: Stream, answer: Answer, keep: Keep) -> None:
        self._source, self._answer, self._keep = source, answer, keep
        self._number = -1

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """See Stream."""
        answer, at = self._answer, {"item_id": self._answer.item_id, "output_index": 0, "content_index": 0}
        begun = _plain(answer.begun())
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event(
            "response.output_item.added", output_index=0, item=_plain(answer.message(None, "in_progress"))
        )
        yield self._event("response.content_part.added", **at, part=_plain(OutputText(text="")))
        text, reason, usage, broken = "", None, None, None
        try:
            async for chunk in chunks(aiter(self._source)):
                if chunk is None:
                    yield PING
                    continue
                if "error" in chunk:
                    broken = str((chunk["error"] or {}).get("message") or "The inference engine failed.")
                    break
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices") or []:
                    reason = choice.get("finish_reason") or reason
                    if delta := (choice.get("delta") or {}).get("content"):
                        text += delta
                        yield self._event("response.output_text.delta", **at, delta=delta, logprobs=[])
        except ValueError as problem:
            broken = f"The inference engine's stream could not be read: {problem}"
        if broken is not None or reason is None:
            failed = answer.failed(broken or "The inference engine's answer broke off.")
            yield self._event("response.failed", response=_plain(failed))
            return
        whole = await self._keep(answer.ended(text, reason, usage))
        yield self._event("response.output_text.done", **at, text=text, logprobs=[])
        yield self._event("response.content_part.done", **at, part=_plain(OutputText(text=text)))
        yield self._event("response.output_item.done", output_index=0, item=_plain(whole.output[0]))
        yield self._event(f"response.{whole.status}", response=_plain(whole))

    async def close(self) -> None:
        """See Stream."""
        await self._source.close()

    def _event(self, kind: str, **more: Any) -> bytes:
        self._number += 1
        data = json.dumps({"type": kind, "sequence_number": self._number, **more}, ensure_ascii=False)
        return f"event: {kind}\ndata: {data}\n\n".encode()


async def chunks(source: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any] | None]:
    """The objects in a stream of server-sent events, each with one line of data; None for a comment. `[DONE]` ends it.

    Args:
        source: Bytes, cut anywhere.
    Raises:
        ValueError: No such stream: an event has no end, or is no JSON.
    """
    rest = b""
    async for piece in source:
        *whole, rest = (rest + piece).split(b"\n\n")
        for event in whole:
            lines = event.split(b"\n")
            data = [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]
            if data == [b"[DONE]"]:
                return
            if data:
                yield json.loads(b"\n".join(data))
            elif any(line.startswith(b":") for line in lines):
                yield None
        if len(rest) > MAX_EVENT_BYTES:
            raise ValueError("an event of the engine's stream does not end")


def _plain(model: Any) -> dict[str, Any]:
    made: dict[str, Any] = model.model_dump(mode="json")
    return made
