"""The seam to whatever computes answers: a protocol, and the embedded engine behind HTTP (`python -m finetune serve`).

An engine is told everything it needs with each request (`llamaflow`: base and adapter); it keeps no books of projects or
jobs. Nothing here knows the database.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from app.errors import ApiError, BadRequest, Conflict, Forbidden, NotFound, TooLarge, TooMany, Unavailable
from app.files.storage import Storage
from app.settings import Settings
from finetune.steps import ModelSource

CONNECT_SECONDS = 2.0
WHOLE_SECONDS = 600.0
"""How long a whole answer may take: as long as the official clients wait."""
SILENCE_SECONDS = 60.0
"""Silence in a stream after which the engine is taken for dead: it sends a comment every ten seconds."""

KINDS: dict[int, type[ApiError]] = {
    400: BadRequest, 403: Forbidden, 404: NotFound, 409: Conflict, 413: TooLarge, 429: TooMany, 503: Unavailable,
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """What answers for a model name.

    Attributes:
        base: Where the base comes from, pinned where it can be.
        adapter: `id`, `uri`, `manifest_uri`, `manifest_sha256` of the adapter on it; None for the base alone.
        combination: Instead of one: `members` (`name`, `adapter`), and perhaps `method` and `threshold`.
        raw: The one message is the prompt as it is, to be gone on from without a template.
    """

    base: ModelSource
    adapter: dict[str, str] | None = None
    combination: dict[str, Any] | None = None
    raw: bool = False

    def as_json(self) -> dict[str, Any]:
        """`llamaflow` of a request to an engine."""
        told = {"base": self.base.model_dump(mode="json"), "adapter": self.adapter}
        told |= {"combination": self.combination} if self.combination is not None else {}
        return told | ({"raw": True} if self.raw else {})


class Engine(Protocol):
    """What computes answers. `body` is OpenAI's chat request; both raise ApiError, and stop computing when cancelled."""

    async def complete(self, body: dict[str, Any], served: Served) -> dict[str, Any]:
        """The whole completion."""
        ...

    async def stream(self, body: dict[str, Any], served: Served) -> Stream:
        """The completion as server-sent events, once it is sure to begin."""
        ...

    async def merge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Make one adapter of several, and put it at `target`: its `files` and `lora`."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class Stream(Protocol):
    """Server-sent events under way. To be closed by whoever got it, however it ends."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Bytes as they come; a failure on the way is an event of its own."""
        ...

    async def close(self) -> None:
        """Stop the computing, if it has not ended."""
        ...


class HttpEngine:
    """The embedded engine at `LLAMAFLOW_ENGINE_URL`.

    Args:
        url: Its address.
        token: What it wants to be shown.
    """

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            trust_env=False,
        )

    async def complete(self, body: dict[str, Any], served: Served) -> dict[str, Any]:
        """See Engine."""
        return await _whole(await self._send(body, served, WHOLE_SECONDS))

    async def stream(self, body: dict[str, Any], served: Served) -> HttpStream:
        """See Engine."""
        return HttpStream(await self._send(body, served, SILENCE_SECONDS))

    async def merge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """See Engine."""
        return await _whole(await self._post("/v1/adapters/merge", asked, WHOLE_SECONDS))

    async def close(self) -> None:
        """See Engine."""
        await self._client.aclose()

    async def _send(self, body: dict[str, Any], served: Served, silence: float) -> httpx.Response:
        return await self._post("/v1/chat/completions", {**body, "llamaflow": served.as_json()}, silence)

    async def _post(self, path: str, content: dict[str, Any], silence: float) -> httpx.Response:
        timeout = httpx.Timeout(silence, connect=CONNECT_SECONDS)
        request = self._client.build_request("POST", path, json=content, timeout=timeout)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.HTTPError as problem:
            raise _away(problem) from problem
        if response.status_code == 200:
            return response
        try:
            raise _refusal(response, await response.aread())
        except httpx.HTTPError as problem:
            raise _away(problem) from problem
        finally:
            await response.aclose()


class HttpStream:
    """An answer of the embedded engine on its way."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """See Stream."""
        try:
            async for chunk in self._response.aiter_raw():
                yield chunk
        except httpx.HTTPError as problem:
            yield b"data: " + json.dumps(_away(problem).body()).encode() + b"\n\n"

    async def close(self) -> None:
        """See Stream."""
        await self._response.aclose()


class NoEngine:
    """What stands where no engine is set up."""

    async def complete(self, body: dict[str, Any], served: Served) -> dict[str, Any]:
        """Refuses."""
        raise _missing()

    async def stream(self, body: dict[str, Any], served: Served) -> HttpStream:
        """Refuses."""
        raise _missing()

    async def merge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Refuses."""
        raise _missing()

    async def close(self) -> None:
        """Nothing to close."""


def from_settings(settings: Settings) -> Engine:
    """The engine the settings name: vLLM's servers, else the embedded one."""
    if settings.vllm_urls:
        return _vllm(settings)
    if settings.engine_url is None:
        return NoEngine()
    token = settings.engine_token
    return HttpEngine(settings.engine_url, token.get_secret_value() if token else None)


def _vllm(settings: Settings) -> Engine:
    from app.inference.vllm import VllmEngine  # they know this module
    from app.inference.vllm_adapters import Adapters

    folder = (settings.vllm_adapters_dir or settings.state_dir / "vllm-adapters").resolve()
    kept = 4 * settings.vllm_max_adapters
    adapters = Adapters(Storage(settings), folder, settings.vllm_adapters_seen_at or str(folder), most=kept)
    token = settings.vllm_token.get_secret_value() if settings.vllm_token else None
    return VllmEngine(settings.vllm_urls, token, adapters, max_adapters=settings.vllm_max_adapters)


async def _whole(response: httpx.Response) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(await response.aread())
    except (httpx.HTTPError, ValueError) as problem:
        raise _away(problem) from problem
    finally:
        await response.aclose()
    return told


def _refusal(response: httpx.Response, content: bytes) -> ApiError:
    """The engine's own error, as this service answers it."""
    try:
        error = dict(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        error = {}
    kind = KINDS.get(response.status_code)
    if kind is None or not isinstance(error.get("message"), str):
        return ApiError("The inference engine failed on this request. See its log.", code="engine_error")
    after = response.headers.get("retry-after", "")
    return kind(
        error["message"],
        code=error.get("code"),
        param=error.get("param"),
        retry_after=int(after) if after.isdigit() else None,
    )


def _away(problem: Exception) -> Unavailable:
    kind = type(problem).__name__
    return Unavailable(
        f"The inference engine does not answer ({kind}). Try again in a moment.",
        code="engine_unavailable",
        retry_after=3,
    )


def _missing() -> Unavailable:
    return Unavailable(
        "No inference engine is set up. Start one with `llamaflow engine` and set LLAMAFLOW_ENGINE_URL.",
        code="engine_unavailable",
        retry_after=30,
    )
