"""The second engine: vLLM's servers behind the same seam, each serving one base, with adapters loaded as they are asked for.

A thin proxy: requests and answers pass unchanged but for the model's name. vLLM must run with --enable-lora and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and see the folder of adapters. Not yet run against vLLM itself: built by its documentation.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import httpx

from app.errors import ApiError, BadRequest, NotFound, Unavailable
from app.inference.engines import CONNECT_SECONDS, KINDS, SILENCE_SECONDS, WHOLE_SECONDS, Served, Stream
from app.inference.vllm_adapters import Adapters

DOWN_SECONDS = 5.0
"""A server that did not answer is not asked for so long, if there is another."""
LOAD_SECONDS = 120.0
MAX_EVENT_BYTES = 1 << 20


@dataclass(eq=False)
class Replica:
    """One of vLLM's servers.

    Attributes:
        url: Its address.
        client: To it.
        bases: What it calls its base, by every name that may mean it; None before it was asked.
        loaded: Adapters it has, the longest unused first, with the requests that use each now.
        busy: Requests under way.
        down_until: By the monotonic clock.
    """

    url: str
    client: httpx.AsyncClient
    bases: dict[str, str] | None = None
    loaded: OrderedDict[str, int] = field(default_factory=OrderedDict)
    busy: int = 0
    down_until: float = 0.0
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def fail(self) -> None:
        """It did not answer: what it had in memory may be gone."""
        self.down_until = time.monotonic() + DOWN_SECONDS
        self.bases = None
        self.loaded = OrderedDict((name, uses) for name, uses in self.loaded.items() if uses)


class VllmEngine:
    """Several of vLLM's servers.

    Args:
        urls: Their addresses.
        token: What they want to be shown (--api-key).
        adapters: Brings adapters to where the servers see them.
        max_adapters: Adapters each holds (--max-cpu-loras); the longest unused is unloaded.
    """

    def __init__(self, urls: list[str], token: str | None, adapters: Adapters, *, max_adapters: int) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._replicas = [
            Replica(url, httpx.AsyncClient(base_url=url, headers=headers, limits=limits, trust_env=False))
            for url in urls
        ]
        self._adapters, self._max_adapters = adapters, max_adapters

    async def complete(self, body: dict[str, Any], served: Served) -> dict[str, Any]:
        """See Engine."""
        call = await self._begin(body, served, WHOLE_SECONDS)
        try:
            answer: dict[str, Any] = json.loads(await call.response.aread())
        except (httpx.HTTPError, ValueError) as problem:
            call.replica.fail()
            raise _away(problem) from problem
        finally:
            await call.close()
        return answer | {"model": body["model"]}

    async def stream(self, body: dict[str, Any], served: Served) -> Stream:
        """See Engine."""
        return VllmStream(await self._begin(body, served, SILENCE_SECONDS), body["model"])

    async def merge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Refuses: vLLM merges nothing."""
        raise BadRequest(
            "vLLM merges no adapters. Start the embedded engine (`llamaflow engine`) for that.",
            code="unsupported_operation",
            param="method",
        )

    async def close(self) -> None:
        """See Engine."""
        for replica in self._replicas:
            await replica.client.aclose()
        self._adapters.close()

    async def _begin(self, body: dict[str, Any], served: Served, silence: float) -> Call:
        """Send a request to a server that has the base; to the next one if that is away."""
        _check(served)
        name = await self._adapters.bring(served) if served.adapter is not None else None
        tried: list[Replica] = []
        while True:
            replica, base = await self._pick(served, name, tried)
            tried.append(replica)
            try:
                return await self._send(replica, body, base, name, silence)
            except (httpx.TransportError, Unavailable) as problem:
                replica.fail()
                if len(tried) == len(self._replicas):
                    raise problem if isinstance(problem, ApiError) else _away(problem) from problem

    async def _send(self, replica: Replica, body: dict[str, Any], base: str, name: str | None, silence: float) -> Call:
        content = {**body, "model": name or base}
        call = Call(replica, name)
        try:
            for attempt in range(2):
                if name is not None:
                    await self._load(replica, call, name, again=attempt > 0)
                request = replica.client.build_request(
                    "POST",
                    "/v1/chat/completions",
                    json=content,
                    timeout=httpx.Timeout(silence, connect=CONNECT_SECONDS),
                )
                call.response = await replica.client.send(request, stream=True)
                if call.response.status_code == 200:
                    return call
                refusal = _refusal(call.response.status_code, await call.response.aread(), call.response.headers)
                await call.response.aclose()
                if not (isinstance(refusal, NotFound) and name is not None and attempt == 0):  # it has lost the adapter
                    raise refusal
            raise refusal
        except BaseException:
            await call.close()
            raise

    async def _pick(self, served: Served, name: str | None, tried: list[Replica]) -> tuple[Replica, str]:
        """The least busy server of those that have the base, one that has the adapter before others."""
        await asyncio.gather(*(self._look(replica) for replica in self._replicas if replica not in tried))
        wanted = (served.base.location, served.base.id)
        found = [
            (replica, base)
            for replica in self._replicas
            if replica not in tried
            and (base := next((replica.bases[one] for one in wanted if replica.bases and one in replica.bases), None))
        ]
        if not found:
            if tried or any(replica.bases is None for replica in self._replicas):
                raise _away(None)
            served_now = sorted({base for replica in self._replicas for base in (replica.bases or {}).values()})
            message = f"No server of vLLM here serves the base {served.base.id}; served are: {', '.join(served_now)}."
            raise NotFound(message, code="model_not_served", param="model")
        return min(found, key=lambda pair: (name is not None and name not in pair[0].loaded, pair[0].busy))

    async def _look(self, replica: Replica) -> None:
        """Ask a server what it serves, once; and again after it was away."""
        if replica.bases is not None or time.monotonic() < replica.down_until:
            return
        try:
            (await replica.client.get("/health", timeout=CONNECT_SECONDS)).raise_for_status()
            answer = await replica.client.get("/v1/models", timeout=CONNECT_SECONDS)
            answer.raise_for_status()
            models = answer.json()["data"]
        except (httpx.HTTPError, ValueError, KeyError):
            replica.fail()
            return
        own = [model for model in models if not model.get("parent")]
        replica.bases = {name: model["id"] for model in own for name in (model.get("root"), model["id"]) if name}
        for model in models:
            if model.get("parent"):
                replica.loaded.setdefault(model["id"], 0)

    async def _load(self, replica: Replica, call: Call, name: str, *, again: bool) -> None:
        """Have a call's adapter in a server's memory; the longest unused one of ours makes room."""
        async with replica.changing:
            if name in replica.loaded and not again:
                replica.loaded.move_to_end(name)
                call.hold()
                return
            idle = [one for one, uses in replica.loaded.items() if not uses and self._adapters.is_ours(one)]
            for one in idle[: max(0, len(replica.loaded) + 1 - self._max_adapters)]:
                await self._ask(replica, "/v1/unload_lora_adapter", {"lora_name": one}, fine=404)
                del replica.loaded[one]
            path = str(PurePosixPath(self._adapters.seen_at) / name)
            await self._ask(replica, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, fine=None)
            replica.loaded.setdefault(name, 0)
            call.hold()

    async def _ask(self, replica: Replica, path: str, content: dict[str, Any], fine: int | None) -> None:
        answer = await replica.client.post(path, json=content, timeout=LOAD_SECONDS)
        if answer.status_code in (200, fine):
            return
        told = _message(answer.content)
        if answer.status_code == 400 and "already been loaded" in told:
            return
        if answer.status_code == 404 and not told:
            told = "it was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        raise ApiError(f"vLLM could not load the adapter: {told or answer.status_code}.", code="engine_error")


class Call:
    """A request under way at a server.

    Args:
        replica: Whose.
        name: The adapter it uses.
    """

    response: httpx.Response

    def __init__(self, replica: Replica, name: str | None) -> None:
        self.replica, self._name, self._open = replica, name, True
        self._held = False
        replica.busy += 1

    def hold(self) -> None:
        """Its adapter is loaded, and stays so until it is over."""
        if self._name is not None and not self._held:
            self._held = True
            self.replica.loaded[self._name] += 1

    async def close(self) -> None:
        """It is over; a server whose answer is not read to its end stops computing it."""
        if not self._open:
            return
        self._open = False
        self.replica.busy -= 1
        if self._name is not None and self._held and self.replica.loaded.get(self._name, 0) > 0:
            self.replica.loaded[self._name] -= 1
        if hasattr(self, "response"):
            await self.response.aclose()


class VllmStream:
    """An answer on its way, with the model's name as it was asked for."""

    def __init__(self, call: Call, model: str) -> None:
        self._call, self._model = call, model

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """See Stream."""
        rest = b""
        try:
            async for piece in self._call.response.aiter_raw():
                *events, rest = (rest + piece).split(b"\n\n")
                if len(rest) > MAX_EVENT_BYTES:
                    raise ValueError("an event of vLLM's stream does not end")
                for event in events:
                    yield self._named(event) + b"\n\n"
        except (httpx.HTTPError, ValueError) as problem:
            self._call.replica.fail()
            yield b"data: " + json.dumps(_away(problem).body()).encode() + b"\n\n"

    async def close(self) -> None:
        """See Stream."""
        await self._call.close()

    def _named(self, event: bytes) -> bytes:
        if not event.startswith(b"data: {"):
            return event
        chunk = json.loads(event.removeprefix(b"data: "))
        if "error" in chunk or chunk.get("object") == "error":
            return b"data: " + json.dumps(_refusal(500, event.removeprefix(b"data: "), {}).body()).encode()
        return b"data: " + json.dumps(chunk | {"model": self._model}, ensure_ascii=False).encode()


def _check(served: Served) -> None:
    if served.combination is not None:
        message = "Combinations are answered by the embedded engine; vLLM serves one adapter a request. Merge them, or name one."
        raise BadRequest(message, code="unsupported_operation", param="model")
    if served.raw:
        message = "vLLM is asked for chats here: use /v1/chat/completions."
        raise BadRequest(message, code="unsupported_operation")


def _message(content: bytes) -> str:
    """What an error of vLLM's says: nested under `error` since 0.10, flat before, or FastAPI's own."""
    try:
        told = json.loads(content)
    except ValueError:
        return ""
    told = told.get("error", told) if isinstance(told, dict) else {}
    message = told.get("message") if isinstance(told, dict) else None
    return message.rstrip(".") if isinstance(message, str) else ""


def _refusal(status: int, content: bytes, headers: Any) -> ApiError:
    """vLLM's error as this service answers it."""
    kind, message = KINDS.get(status), _message(content)
    if kind is None or not message:
        return ApiError("vLLM failed on this request. See its log.", code="engine_error")
    after = headers.get("retry-after", "")
    code = {400: "invalid_value", 404: "model_not_found", 429: "queue_full", 503: "engine_unavailable"}.get(status)
    return kind(f"{message}.", code=code, retry_after=int(after) if after.isdigit() else None)


def _away(problem: Exception | None) -> Unavailable:
    kind = f" ({type(problem).__name__})" if problem is not None else ""
    return Unavailable(
        f"No server of vLLM with this model answers{kind}. Try again in a moment.",
        code="engine_unavailable",
        retry_after=3,
    )
