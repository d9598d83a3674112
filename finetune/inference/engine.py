"""The engine: one base in memory, a queue before it, and one thread that makes tokens for a few requests in turn.

Each request has its own cache of keys and values and gets slices of time, so an answer never depends on who else is asking.
A request for another base waits until those before it are answered; then the base is exchanged. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from finetune import environment
from finetune.exit_codes import StepError
from finetune.inference import adapters, errors, model, prompt
from finetune.inference.adapters import AdapterFiles
from finetune.inference.errors import EngineError
from finetune.inference.generation import Generation, Piece
from finetune.inference.prompt import Prompt
from finetune.inference.request import AdapterSource, ChatRequest
from finetune.inference.sampling import Sampling
from finetune.model import cache, fetch, loading
from finetune.steps import S3, Base, ModelSource

log = logging.getLogger("finetune.engine")

SLICE_SECONDS = 0.05
"""How long one request computes before another's turn comes: switching adapters costs some milliseconds."""


@dataclass(frozen=True)
class Options:
    """How much the engine takes on.

    Attributes:
        cache: The content-addressed cache of bases and adapters.
        queue: Requests taken in at once, computing and waiting; further ones get 429.
        together: Requests that compute in turn; the others wait.
        max_adapters: Adapters in memory.
        max_adapter_bytes: Of all adapters in memory.
        max_tokens: Tokens an answer gets where the request does not say.
        idle_seconds: After this long without a request the base is dropped; 0 for never.
        allow_local: Take `file://` adapters.
    """

    cache: Path
    queue: int = 64
    together: int = 4
    max_adapters: int = 16
    max_adapter_bytes: int = 2 << 30
    max_tokens: int = 1024
    idle_seconds: float = 0.0
    allow_local: bool = False


@dataclass(frozen=True)
class Done:
    """The last thing of an answer: what it took, in tokens."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Prepared:
    """What a request needs, found and checked."""

    folder: Path
    base: Base
    adapter: AdapterFiles | None
    prompt: Prompt


@dataclass(eq=False)
class Answering:
    """A request in the engine: `next` gives its pieces, then `Done`; `cancel` stops the computing of it.

    `fingerprint` names base, adapter, precision and version: equal ones answer equally to equal seeds.
    """

    request: ChatRequest
    prepared: Prepared
    seed: int
    fingerprint: str
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    events: asyncio.Queue[Piece | Done | EngineError] = field(default_factory=asyncio.Queue)
    generation: Generation | None = None
    cancelled: bool = False

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


class Engine:
    """One base, many adapters, one computing thread.

    Args:
        options: How much it takes on.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._changed = threading.Condition()
        self._waiting: deque[Answering] = deque()
        self._active: deque[Answering] = deque()
        self._unloads: list[threading.Event] = []
        self._taken = 0
        self._closing = False
        self._base: model.LoadedBase | None = None
        self._base_of: Base | None = None
        self._known: dict[str, tuple[Path, Base]] = {}
        self._adapters: dict[tuple[AdapterSource, str], AdapterFiles] = {}
        self._preparing = ThreadPoolExecutor(4, "prepare")
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Start the computing thread."""
        self._thread.start()

    def close(self) -> None:
        """End it; answers under way break off."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._thread.join(timeout=3)  # it may be loading a base, which nothing can interrupt

    def status(self) -> dict[str, object]:
        """What is in memory and how busy it is."""
        base = self._base
        return {
            "loaded_base": self._base_of.model_dump(include={"id", "revision"}) if self._base_of else None,
            "precision": base.precision if base else None,
            "adapters": [
                source.id for (source, _), files in list(self._adapters.items()) if base and files.key in base.adapters
            ],
            "computing": len(self._active),
            "waiting": len(self._waiting),
        }

    async def submit(self, request: ChatRequest) -> Answering:
        """Take a request in.

        Raises:
            EngineError: 429 when the queue is full; whatever is wrong with model, adapter or messages.
        """
        if self._taken >= self.options.queue:
            raise EngineError(
                429, "The engine has as many requests as it takes. Try again soon.", code="queue_full", retry_after=2
            )
        self._taken += 1
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(self._preparing, self._prepare, request)
        except StepError as problem:
            self._taken -= 1
            raise errors.of_step(problem) from problem
        except BaseException:
            self._taken -= 1
            raise
        seed = request.seed if request.seed is not None else secrets.randbits(62)
        answering = Answering(request, prepared, seed, _fingerprint(prepared))
        with self._changed:
            self._waiting.append(answering)
            self._changed.notify_all()
        return answering

    def release(self, answering: Answering) -> None:
        """To be called once for every `submit` that returned: makes room in the queue, stops the computing."""
        answering.cancel()
        self._taken -= 1

    async def unload(self) -> None:
        """Drop base and adapters from memory, when the answers under way are done. The next request loads again."""
        dropped = threading.Event()
        with self._changed:
            self._unloads.append(dropped)
            self._changed.notify_all()
        await asyncio.to_thread(dropped.wait)

    def _prepare(self, request: ChatRequest) -> Prepared:
        target, access = request.llamaflow, S3()
        folder, base = self._obtain(target.base, access)
        files = None
        if target.adapter is not None:
            known = (target.adapter, base.revision)
            files = self._adapters.get(known)
            if files is None or not files.folder.is_dir():
                files = adapters.obtain(
                    target.adapter, base, access, self.options.cache, allow_local=self.options.allow_local
                )
                self._adapters[known] = files
            cache.touch(files.folder)
        template = files.template if files is not None else base.template
        return Prepared(folder, base, files, prompt.build(request, folder, template, most=self.options.max_tokens))

    def _obtain(self, source: ModelSource, access: S3) -> tuple[Path, Base]:
        key = source.model_dump_json()
        known = self._known.get(key)
        if known is None or not known[0].is_dir():
            folder, base, _ = fetch.obtain(source, access, self.options.cache)
            known = self._known[key] = folder, base
        elif source.kind != "path":
            cache.touch(known[0])
        return known

    # ---- the computing thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        loading.use_threads()
        while (answering := self._next()) is not None:
            try:
                self._advance(answering)
            except StepError as problem:
                self._fail(answering, errors.of_step(problem))
            except Exception as problem:
                log.exception("an answer broke off")
                self._fail(answering, _as_error(problem))

    def _next(self) -> Answering | None:
        """Whose turn it is; waits until there is somebody. None: the engine closes."""
        with self._changed:
            while not self._closing:
                self._active = deque(answering for answering in self._active if not answering.cancelled)
                self._admit()
                if self._active:
                    self._active.rotate(-1)
                    return self._active[-1]
                self._settle_unloads()
                if not self._waiting and not self._changed.wait(self._patience()) and not self._waiting:
                    self._drop()
        return None

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.options.together and not self._unloads:
            first = self._waiting[0]
            if self._active and self._active[0].prepared.base != first.prepared.base:
                return
            self._waiting.popleft()
            if not first.cancelled:
                self._active.append(first)

    def _settle_unloads(self) -> None:
        if self._unloads:
            self._drop()
        while self._unloads:
            self._unloads.pop().set()

    def _patience(self) -> float | None:
        return self.options.idle_seconds if self.options.idle_seconds and self._base is not None else None

    def _drop(self) -> None:
        if self._base is not None:
            log.info("dropped %s from memory", self._base_of.id if self._base_of else "the base")
        self._base = self._base_of = None
        self._adapters.clear()
        self._known.clear()
        model.free()

    def _advance(self, answering: Answering) -> None:
        """Compute for one request, for a slice of time."""
        base = self._ready(answering.prepared)
        base.use(answering.prepared.adapter)
        if answering.generation is None:
            answering.generation = _begin(base, answering)
        until = time.monotonic() + SLICE_SECONDS
        while not answering.cancelled:
            for piece in answering.generation.step():
                answering.tell(piece)
            if answering.generation.finished:
                answering.tell(Done(len(answering.prepared.prompt.ids), answering.generation.tokens))
                self._active.remove(answering)
                return
            if time.monotonic() >= until:
                return

    def _ready(self, prepared: Prepared) -> model.LoadedBase:
        if self._base is None or self._base_of != prepared.base:
            self._base = self._base_of = None
            model.free()
            begin = time.monotonic()
            options = self.options
            self._base = model.LoadedBase(
                prepared.folder, max_adapters=options.max_adapters, max_bytes=options.max_adapter_bytes
            )
            self._base_of = prepared.base
            log.info("loaded %s in %s, %.1f s", prepared.base.id, self._base.precision, time.monotonic() - begin)
        return self._base

    def _fail(self, answering: Answering, problem: EngineError) -> None:
        answering.tell(problem)
        answering.generation = None
        if answering in self._active:
            self._active.remove(answering)


def _begin(base: model.LoadedBase, answering: Answering) -> Generation:
    request, given = answering.request, answering.prepared.prompt
    sampling = Sampling(
        request.temperature, request.top_p, request.frequency_penalty, request.presence_penalty, answering.seed
    )
    return Generation(
        base,
        given.ids,
        sampling,
        count=request.n,
        limit=given.limit,
        ends=frozenset(given.tokenizer.eos_ids),
        decode=given.tokenizer.decode,
        stops=request.stop,
    )


def _fingerprint(prepared: Prepared) -> str:
    facts = (
        prepared.base.revision,
        prepared.adapter.key if prepared.adapter else "",
        environment.precision(),
        torch.__version__,
    )
    return "fp_" + hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _as_error(problem: Exception) -> EngineError:
    if isinstance(problem, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(problem):
        model.free()
        return EngineError(503, "The engine ran out of memory for this request.", code="out_of_memory", retry_after=10)
    return EngineError(500, "The engine failed on this request. See its log.", code="internal_error")
