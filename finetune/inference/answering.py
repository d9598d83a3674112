"""A request in the engine: what it needs, found and checked, and what is told of it while it is answered.

The engine's thread tells, the request's task listens. Knows no HTTP and computes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune import environment
from finetune.inference.adapters import AdapterFiles
from finetune.inference.errors import EngineError
from finetune.inference.generation import Piece
from finetune.inference.prompt import Prompt
from finetune.inference.request import ChatRequest
from finetune.inference.stacked import Mix
from finetune.steps import Base


@dataclass(frozen=True)
class Done:
    """The last thing of an answer: what it took, in tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Prepared:
    """What a request needs, found and checked.

    Attributes:
        folder: The base's.
        base: What it is.
        adapters: The one asked for, those of the combination, or none.
        prompt: None where it depends on the adapter that is still to be chosen.
    """

    folder: Path
    base: Base
    adapters: tuple[AdapterFiles, ...]
    prompt: Prompt | None


@dataclass(frozen=True)
class Settled:
    """What answers, once that is decided.

    Attributes:
        prompt: What is gone on from.
        mix: Keys of the adapters.
        told: How a combination chose, as the answer says it; None where there was nothing to choose.
    """

    prompt: Prompt
    mix: Mix
    told: dict[str, Any] | None = None


@dataclass(eq=False)
class Answering:
    """A request in the engine: `next` gives its pieces, then `Done`; `cancel` stops the computing of it.

    Attributes:
        request: As asked.
        prepared: What it needs.
        seed: Of its first answer.
        settled: None until its turn comes.
    """

    request: ChatRequest
    prepared: Prepared
    seed: int
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: asyncio.Queue[Piece | Done | EngineError] = field(default_factory=asyncio.Queue)
    settled: Settled | None = None
    tokens: int = 0
    open: int = 0
    cancelled: bool = False

    @property
    def fingerprint(self) -> str:
        """Of base, adapters, precision and version: equal ones answer equally to equal seeds."""
        mix = self.settled.mix if self.settled else tuple(files.key for files in self.prepared.adapters)
        facts = (self.prepared.base.revision, *mix, environment.precision(), torch.__version__)
        return "fp_" + hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True

    async def next(self, seconds: float | None = None) -> Piece | Done | None:
        """What comes next, `Done` at the end; None if nothing comes within `seconds`.

        Raises:
            EngineError: The answer broke off.
        """
        try:
            async with asyncio.timeout(seconds):
                event = await self.events.get()
        except TimeoutError:
            return None
        if isinstance(event, EngineError):
            raise event
        return event

    def tell(self, event: Piece | Done | EngineError) -> None:
        """Hand an event over from the engine's thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens
            self.cancelled = True

    def pass_on(self, piece: Piece) -> None:
        """Tell a piece, and the end with the last one."""
        self.tokens += 1
        if piece.text or piece.reason:
            self.tell(piece)
        if piece.reason is not None:
            self.open -= 1
            if not self.open and self.settled is not None:
                self.tell(Done(len(self.settled.prompt.ids), self.tokens))
