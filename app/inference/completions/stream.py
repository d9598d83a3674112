"""Engines' streams of chat chunks, told as one stream of completion chunks, prompt after prompt."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from app.errors import ApiError
from app.inference.completions.ask import Asked, added, in_own_words
from app.inference.engines import Engine, Served, Stream
from app.inference.responses.stream import PING, chunks


class CompletionStream:
    """Completions as server-sent events.

    Args:
        asked: The request.
        engine: Asked for the next prompt when the one before is answered.
        served: What answers.
        first: The stream of the first prompt; closed with this one.
    """

    def __init__(self, asked: Asked, engine: Engine, served: Served, first: Stream) -> None:
        self._asked, self._engine, self._served, self._source = asked, engine, served, first

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """See Stream."""
        usages: list[dict[str, Any]] = []
        fingerprint: str | None = None
        try:
            for at, request in enumerate(self._asked.requests()):
                if at:
                    await self._source.close()
                    self._source = await self._engine.stream(request, self._served)
                async for chunk in chunks(aiter(self._source)):
                    if chunk is None:
                        yield PING
                        continue
                    if "error" in chunk:
                        yield _event(chunk)
                        return
                    fingerprint = chunk.get("system_fingerprint") or fingerprint
                    usages += [chunk["usage"]] if chunk.get("usage") else []
                    for told in self._choices(at, chunk):
                        yield _event(self._asked.head(fingerprint) | {"choices": [told]} | self._usage(None))
        except ApiError as problem:
            yield _event(in_own_words(problem).body())
            return
        except ValueError as problem:
            yield _event(ApiError(f"The inference engine's stream could not be read: {problem}").body())
            return
        if self._wants_usage:
            usage = added(usages).model_dump()
            yield _event(self._asked.head(fingerprint) | {"choices": []} | self._usage(usage))
        yield b"data: [DONE]\n\n"

    async def close(self) -> None:
        """See Stream."""
        await self._source.close()

    @property
    def _wants_usage(self) -> bool:
        return bool((self._asked.body.stream_options or {}).get("include_usage"))

    def _usage(self, usage: dict[str, Any] | None) -> dict[str, Any]:
        return {"usage": usage} if self._wants_usage else {}

    def _choices(self, at: int, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of a chat chunk that say something: the one with the role begins with the prompt, if it is echoed."""
        body, found = self._asked.body, []
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            text = delta.get("content") or ""
            if body.echo and "role" in delta:
                text = body.prompts[at] + text
            if text or choice.get("finish_reason"):
                index = at * body.count + choice["index"]
                told = {"index": index, "text": text, "logprobs": None, "finish_reason": choice.get("finish_reason")}
                found.append(told)
        return found


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
