"""An engine in the test's own process, asked by several at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from finetune.inference.answering import Answering, Done
from finetune.inference.engine import Engine, Options
from finetune.inference.request import parse
from tests.finetune.inference.conftest import Base, adapter_source


@asynccontextmanager
async def running(cache: Path, **options: Any) -> AsyncIterator[Engine]:
    """A started engine."""
    engine = Engine(Options(cache=cache, allow_local=True, **options))
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


def body(base: Base, adapter: Path | None = None, *, question: str = "Hello", **more: Any) -> dict[str, Any]:
    """A request; `combination` of it goes where the engine looks for it."""
    combination = more.pop("combination", None)
    target: dict[str, Any] = {"base": base.source}
    if adapter is not None:
        target["adapter"] = adapter_source(adapter, adapter.name)
    if combination is not None:
        target["combination"] = combination
    asked = {"model": "m", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
    return asked | more | {"llamaflow": target}


def several(*prefixes: Path, **how: Any) -> dict[str, Any]:
    """`combination` of a request."""
    return {"members": [{"name": one.name, "adapter": adapter_source(one, one.name)} for one in prefixes]} | how


async def until(engine: Engine, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Wait for a moment that the status shows."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while not wanted(seen := engine.status()):
            assert time.monotonic() < deadline, seen
            time.sleep(0.01)

    await asyncio.to_thread(wait)


async def texts(engine: Engine, asked: dict[str, Any]) -> list[str]:
    """The answers to a request."""
    return (await answered(engine, asked))[0]


async def answered(engine: Engine, asked: dict[str, Any]) -> tuple[list[str], Answering]:
    """The answers to a request, and what is known of it at its end."""
    answering = await engine.submit(parse(asked))
    try:
        found = [""] * answering.request.n
        while not isinstance(event := await answering.next(120), Done):
            assert event is not None, "nothing came for two minutes"
            found[event.index] += event.text
        return found, answering
    finally:
        engine.release(answering)
