"""The engine: one base in memory, a queue before it, and one thread that makes tokens for many requests at once.

Requests that come within a short window begin together, later ones join between two tokens; each row of a batch has its
adapters, its sampling and its end. What cannot stand in one batch (finetune.inference.generation) takes turns. A request for
another base waits until those before it are answered; then the base is exchanged. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from finetune.exit_codes import StepError
from finetune.inference import errors, model
from finetune.inference.answering import Answering
from finetune.inference.errors import EngineError
from finetune.inference.finding import Finder
from finetune.inference.generation import Answer, Batch, Piece, Reading, Row, read_part, read_together
from finetune.inference.merging import Merge, merge_to_s3
from finetune.inference.request import ChatRequest
from finetune.inference.sampling import Sampling
from finetune.inference.settling import Settling
from finetune.model import loading
from finetune.steps import Base

log = logging.getLogger("finetune.engine")

READ_TOKENS = 1024
"""Tokens of prompts that are read at once, padding counted; then answers under way have their turn."""


@dataclass(frozen=True)
class Options:
    """How much the engine takes on.

    Attributes:
        cache: The content-addressed cache of bases and adapters.
        queue: Requests taken in at once, computing and waiting; further ones get 429.
        together: Answers in the making at once; further requests wait.
        batch_tokens: Tokens a batch holds, padding counted; answers that do not fit go on in another, in turn.
        window: Seconds that the first request waits for others to begin with.
        max_adapters: Adapters in memory.
        max_adapter_bytes: Of all adapters in memory.
        max_tokens: Tokens an answer gets where the request does not say.
        idle_seconds: After this long without a request the base is dropped; 0 for never.
        allow_local: Take `file://` adapters.
    """

    cache: Path
    queue: int = 64
    together: int = 16
    batch_tokens: int = 32768
    window: float = 0.005
    max_adapters: int = 16
    max_adapter_bytes: int = 2 << 30
    max_tokens: int = 1024
    idle_seconds: float = 0.0
    allow_local: bool = False


class Engine:
    """One base, many adapters, one computing thread.

    Args:
        options: How much it takes on.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._changed = threading.Condition()
        self._waiting: deque[Answering] = deque()
        self._active: list[Answering] = []
        self._reading: list[Reading] = []
        self._batches: list[Batch] = []
        self._unloads: list[threading.Event] = []
        self._taken = 0
        self._closing = False
        self._base: model.LoadedBase | None = None
        self._base_of: Base | None = None
        self._finder = Finder(options.cache, allow_local=options.allow_local, most=options.max_tokens)
        self._settling = Settling(options.max_tokens)
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
            "adapters": self._finder.names(lambda key: key in base.adapters) if base else [],
            "computing": len(self._active),
            "waiting": len(self._waiting),
            "batches": [len(batch.rows) for batch in list(self._batches)],
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
            prepared = await asyncio.get_running_loop().run_in_executor(self._preparing, self._finder.find, request)
        except StepError as problem:
            self._taken -= 1
            raise errors.of_step(problem) from problem
        except BaseException:
            self._taken -= 1
            raise
        answering = Answering(request, prepared, request.seed if request.seed is not None else secrets.randbits(62))
        with self._changed:
            self._waiting.append(answering)
            self._changed.notify_all()
        return answering

    def release(self, answering: Answering) -> None:
        """To be called once for every `submit` that returned: makes room in the queue, stops the computing."""
        answering.cancel()
        self._taken -= 1

    async def merge(self, asked: Merge) -> dict[str, Any]:
        """Make one adapter of several, beside the answers under way.

        Raises:
            EngineError: One cannot be had, or they cannot be merged.
        """
        try:
            return await asyncio.to_thread(merge_to_s3, asked, self._finder)
        except StepError as problem:
            raise errors.of_step(problem) from problem

    async def unload(self) -> None:
        """Drop base and adapters from memory, when the answers under way are done. The next request loads again."""
        dropped = threading.Event()
        with self._changed:
            self._unloads.append(dropped)
            self._changed.notify_all()
        await asyncio.to_thread(dropped.wait)

    # ---- the computing thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        loading.use_threads()
        while self._has_work():
            self._drop_cancelled()
            self._admit()
            if together := self._next_readings():
                self._guarded(partial(self._read, together), [reading.owner for reading in together])
            for batch in list(self._batches):
                self._guarded(partial(self._step, batch), [row.owner for row in batch.rows])
            self._batches = [batch for batch in self._batches if batch.rows]

    def _has_work(self) -> bool:
        """Wait until there is something to do; False: the engine closes."""
        with self._changed:
            while not self._closing:
                if self._active:
                    return True
                self._settle_unloads()
                if self._waiting:
                    self._wait_for_others()
                    return not self._closing
                if not self._changed.wait(self._patience()) and not self._waiting:
                    self._drop()
        return False

    def _wait_for_others(self) -> None:
        """Let those that come at the same time begin together."""
        until = time.monotonic() + self.options.window
        while len(self._waiting) < self.options.together and not self._closing:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _admit(self) -> None:
        """Begin the requests whose turn it is, in the order they came."""
        while self._waiting and not self._unloads:
            first = self._waiting[0]
            if not first.cancelled and not self._has_place(first):
                return
            self._waiting.popleft()
            if first.cancelled:
                continue
            self._active.append(first)
            self._guarded(partial(self._begin, first), [first])

    def _has_place(self, answering: Answering) -> bool:
        """Whether a request can begin beside those under way. With nothing under way, any can."""
        if not self._active:
            return True
        taken = sum(one.request.n for one in self._active)
        if taken + answering.request.n > self.options.together or self._base_of != answering.prepared.base:
            return False
        needed = answering.prepared.adapters
        return self._base is not None and self._base.has_room(needed, self._in_use())

    def _begin(self, answering: Answering) -> None:
        base = self._ready(answering)
        answering.settled, needed = self._settling.settle(base, answering)
        base.load(needed, self._in_use())
        mix = answering.settled.mix
        if len(mix) > 1 and (odd := [files for files in needed if not base.is_plain(files.key)]):
            message = f"{len(odd)} of the adapters cannot be mixed token by token (DoRA, or beside embeddings)."
            raise errors.bad(message, "model", "unsupported_operation")
        answering.open = answering.request.n
        given = answering.settled.prompt
        answers = [_answer(answering, index) for index in range(answering.request.n)]
        self._reading.append(Reading(given.ids, mix, answers, answering))

    def _next_readings(self) -> list[Reading]:
        """Prompts that are read next in one go: the first, and others that are as short and of like kind."""
        if not self._reading:
            return []
        first, chosen = self._reading[0], self._reading[:1]
        if self._is_apart(first):
            return chosen
        for reading in self._reading[1:]:
            longest = max(len(other.ids) for other in [*chosen, reading])
            if not self._is_apart(reading) and longest * (len(chosen) + 1) <= READ_TOKENS:
                chosen.append(reading)
        return chosen

    def _is_apart(self, reading: Reading) -> bool:
        """Whether a prompt is read alone: long, begun, or of an adapter or base that stands beside nothing."""
        return bool(
            reading.done or reading.left > READ_TOKENS or self._kind(reading) is not None or not self._loaded().joinable
        )

    def _read(self, together: list[Reading]) -> None:
        """Read prompts, as far as it goes at once; the answers to those that are read join a batch."""
        base, first = self._loaded(), together[0]
        if self._is_apart(first):
            scores = read_part(base, first, READ_TOKENS if base.joinable else first.left, self._in_use())
            if first.left:
                self._reading.append(self._reading.pop(0))
                return
            cache = first.cache
        else:
            scores, cache = read_together(base, together, self._in_use())
        self._reading = [reading for reading in self._reading if reading not in together]
        if cache is not None:
            self._join(together, scores, cache)

    def _join(self, readings: list[Reading], scores: torch.Tensor, cache: DynamicCache) -> None:
        """Bring prompts that were read into a batch they fit into, or into a new one."""
        count, longest = sum(len(one.answers) for one in readings), max(len(one.ids) for one in readings)
        kind, base = self._kind(readings[0]), self._loaded()
        batch = next(
            (one for one in self._batches if one.kind == kind and one.takes(count, longest, self.options.batch_tokens)),
            None,
        )
        if batch is None:
            batch = Batch(base, kind, closed=not base.joinable)
            self._batches.append(batch)
        self._tell(batch.begin(readings, scores, cache))

    def _kind(self, reading: Reading) -> str | None:
        """The adapter that keeps a prompt from standing beside others; None if nothing does."""
        return next((key for key in reading.mix if not self._loaded().is_plain(key)), None)

    def _step(self, batch: Batch) -> None:
        if batch.rows:
            self._tell(batch.step(self._in_use()))

    def _tell(self, made: list[tuple[Row, Piece]]) -> None:
        for row, piece in made:
            row.owner.pass_on(piece)
            if not row.owner.open and row.owner in self._active:
                self._active.remove(row.owner)

    def _in_use(self) -> set[str]:
        return {key for one in self._active if one.settled is not None for key in one.settled.mix}

    def _drop_cancelled(self) -> None:
        """Go on without those whose client has hung up."""
        if any(one.cancelled for one in self._active):
            self._part_with([one for one in self._active if one.cancelled])

    def _part_with(self, gone: list[Answering]) -> None:
        self._active = [one for one in self._active if one not in gone]
        self._reading = [reading for reading in self._reading if reading.owner not in gone]
        for batch in self._batches:
            batch.leave(lambda row: row.owner in gone)
        self._batches = [batch for batch in self._batches if batch.rows]

    def _guarded(self, work: Callable[[], None], owners: list[Answering]) -> None:
        """Do a piece of work; if it fails, those it was for break off."""
        try:
            work()
        except EngineError as problem:
            self._fail(owners, problem)
        except StepError as problem:
            self._fail(owners, errors.of_step(problem))
        except Exception as problem:
            log.exception("answers broke off")
            self._fail(owners, _as_error(problem))

    def _fail(self, owners: list[Answering], problem: EngineError) -> None:
        gone = list(dict.fromkeys(owners))
        for answering in gone:
            answering.tell(problem)
        self._part_with(gone)

    # ---- memory -------------------------------------------------------------------------------------------------

    def _loaded(self) -> model.LoadedBase:
        assert self._base is not None  # noqa: S101  nothing is read or made before `_ready`
        return self._base

    def _ready(self, answering: Answering) -> model.LoadedBase:
        prepared = answering.prepared
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
        self._finder.forget()
        model.free()


def _answer(answering: Answering, index: int) -> Answer:
    request, settled = answering.request, answering.settled
    assert settled is not None  # noqa: S101  it has begun
    sampling = Sampling(
        request.temperature, request.top_p, request.frequency_penalty, request.presence_penalty, answering.seed
    )
    given = settled.prompt
    return Answer(
        index,
        sampling,
        limit=given.limit,
        ends=frozenset(given.tokenizer.eos_ids),
        decode=given.tokenizer.decode,
        stops=request.stop,
    )


def _as_error(problem: Exception) -> EngineError:
    if isinstance(problem, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(problem):
        model.free()
        return EngineError(503, "The engine ran out of memory for this request.", code="out_of_memory", retry_after=10)
    return EngineError(500, "The engine failed on this request. See its log.", code="internal_error")
