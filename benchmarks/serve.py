"""Tokens a second and time to the first token of the embedded engine, beside plain transformers + peft, in one run.

`python -m benchmarks.serve [--quick] [--repeats 5] [--tokens 64] [--threads N]` asks eight questions at once: of one adapter,
of eight mixed, and of eight by switching (one after another, each with its adapter); then the same by `generate`. Rounds take
turns, because seconds on a shared machine say little. Then a hundred adapters in memory for sixteen, and what one takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import serve_inputs
from finetune import environment
from finetune.inference.answering import Done
from finetune.inference.engine import Engine, Options
from finetune.inference.request import parse
from finetune.steps import Base

ROWS = 8
REGISTERED = 100
TOGETHER_IN_MEMORY = 16
GOALS = {"mixed / single": 0.9, "mixed / switching": 2.0}


@dataclass(frozen=True)
class Asked:
    """What a round took.

    Attributes:
        tokens: Made, over all answers.
        seconds: From the first request to the last token.
        first: Seconds to the first token, of each request.
    """

    tokens: int
    seconds: float
    first: list[float]

    def as_json(self) -> dict[str, float]:
        """Rounded."""
        speed, median = self.tokens / self.seconds, statistics.median(self.first)
        return {
            "tokens_a_second": round(speed, 2),
            "first_token_s": round(median, 4),
            "slowest_first_s": round(max(self.first), 4),
        }


Round = Callable[[], Awaitable[Asked]]


@asynccontextmanager
async def running(cache: Path, **options: Any) -> AsyncIterator[Engine]:
    """An engine in this process."""
    engine = Engine(Options(cache=cache, allow_local=True, **options))
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


async def ask(engine: Engine, base: Base, adapter: Path | None, question: str, tokens: int) -> tuple[int, float, float]:
    """Ask one question: tokens made, when the first came, when the last."""
    target: dict[str, Any] = {"base": base.model_dump(include={"id", "kind", "location", "revision", "template"})}
    if adapter is not None:
        uri = adapter.as_uri()
        target["adapter"] = {"id": adapter.name, "uri": f"{uri}/adapter/", "manifest_uri": f"{uri}/manifest.json"}
    messages = [{"role": "user", "content": question}]
    body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": tokens, "llamaflow": target}
    answering = await engine.submit(parse(body))
    try:
        first = 0.0
        while not isinstance(event := await answering.next(), Done):
            first = first or time.perf_counter()
        return event.completion_tokens, first or time.perf_counter(), time.perf_counter()
    finally:
        engine.release(answering)


async def at_once(engine: Engine, base: Base, adapters: list[Path], questions: list[str], tokens: int) -> Asked:
    """All questions at the same time, each of its adapter."""
    begin = time.perf_counter()
    asked = (ask(engine, base, *pair, tokens) for pair in zip(adapters, questions, strict=True))
    found = await asyncio.gather(*asked)
    return Asked(
        sum(made for made, _, _ in found), max(end for *_, end in found) - begin, [at - begin for _, at, _ in found]
    )


async def in_turn(engine: Engine, base: Base, adapters: list[Path], questions: list[str], tokens: int) -> Asked:
    """The same questions, all there from the beginning, answered one after another."""
    begin = time.perf_counter()
    found = [await ask(engine, base, *pair, tokens) for pair in zip(adapters, questions, strict=True)]
    return Asked(sum(made for made, _, _ in found), found[-1][2] - begin, [at - begin for _, at, _ in found])


async def measure(inputs: serve_inputs.Inputs, cache: Path, repeats: int, tokens: int) -> dict[str, list[Asked]]:
    """Every contender once a round, in turning order, after one round that nobody counts."""
    some, questions = inputs.adapters[:ROWS], serve_inputs.questions(ROWS)
    plain = serve_inputs.Plain(inputs, some)

    def by_generate(adapters: list[Path | None], mixed: bool) -> Asked:
        return Asked(*plain.ask(adapters, questions, tokens, mixed=mixed))

    async with running(cache, together=ROWS, max_adapters=ROWS) as engine:
        rounds: dict[str, Round] = {
            "base": lambda: at_once(engine, inputs.base, [None] * ROWS, questions, tokens),  # type: ignore[list-item]
            "single": lambda: at_once(engine, inputs.base, [some[0]] * ROWS, questions, tokens),
            "mixed": lambda: at_once(engine, inputs.base, some, questions, tokens),
            "switching": lambda: in_turn(engine, inputs.base, some, questions, tokens),
            "generate, single": lambda: asyncio.to_thread(by_generate, [some[0]] * ROWS, mixed=False),
            "generate, mixed": lambda: asyncio.to_thread(by_generate, list(some), mixed=True),
            "generate, switching": lambda: asyncio.to_thread(by_generate, list(some), mixed=False),
        }
        names = list(rounds)
        found: dict[str, list[Asked]] = {name: [] for name in names}
        for turn in range(repeats + 1):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                made = await rounds[name]()
                if turn:
                    found[name].append(made)
                print(f"{turn}/{repeats} {name}: {made.as_json()}", file=sys.stderr, flush=True)
    return found


async def many(inputs: serve_inputs.Inputs, cache: Path, tokens: int) -> dict[str, Any]:
    """A question of each registered adapter, with room in memory for a few; what it took, and what an adapter in memory takes."""
    process, questions = psutil.Process(), serve_inputs.questions(len(inputs.adapters))
    async with running(cache, together=ROWS, max_adapters=TOGETHER_IN_MEMORY, queue=len(questions)) as engine:
        await ask(engine, inputs.base, None, questions[0], 1)
        before = process.memory_info().rss
        for adapter in inputs.adapters[:TOGETHER_IN_MEMORY]:
            await ask(engine, inputs.base, adapter, questions[0], 1)
        taken = (process.memory_info().rss - before) / TOGETHER_IN_MEMORY
        asked = await at_once(engine, inputs.base, inputs.adapters, questions, tokens)
        held = len(engine.status()["adapters"])  # type: ignore[arg-type]
        return asked.as_json() | {
            "registered": len(inputs.adapters), "in_memory": held, "answered": len(asked.first),
            "bytes_an_adapter": round(taken), "weights_an_adapter": inputs.size,
        }  # fmt: skip


def report(found: dict[str, list[Asked]]) -> dict[str, Any]:
    """Median and spread of each, and the ratios round by round."""
    speeds = {name: [asked.tokens / asked.seconds for asked in rounds] for name, rounds in found.items()}
    made: dict[str, Any] = {
        name: {
            "tokens_a_second": round(statistics.median(speeds[name]), 2),
            "least": round(min(speeds[name]), 2),
            "most": round(max(speeds[name]), 2),
            "first_token_s": round(statistics.median(at for asked in rounds for at in asked.first), 4),
        }
        for name, rounds in found.items()
    }
    pairs = {
        "mixed / single": ("mixed", "single"),
        "mixed / switching": ("mixed", "switching"),
        "single / generate": ("single", "generate, single"),
        "mixed / generate": ("mixed", "generate, mixed"),
    }
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True)), 2)
        for name, (one, other) in pairs.items()
    }
    return {"contenders": made, "ratios": ratios, "goals": GOALS}


def table(made: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| eight questions | tokens a second (spread) | time to the first token |", "|---|--:|--:|"]
    for name, row in made["contenders"].items():
        spread = f"{row['tokens_a_second']:.1f} ({row['least']:.1f} to {row['most']:.1f})"
        lines.append(f"| {name} | {spread} | {row['first_token_s']:.3f} s |")
    lines += [
        f"\n{name}: {ratio}" + (f" (goal {GOALS[name]})" if name in GOALS else "")
        for name, ratio in made["ratios"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """The table, and JSON beside."""
    environment.yield_while_waiting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny random model, one round: whether it works")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer at most")
    parser.add_argument("--threads", type=int, default=environment.threads() or os.cpu_count() or 1)
    parser.add_argument("--model", default=serve_inputs.MODEL, help="a name of the models file")
    parser.add_argument("--cache", type=Path, default=Path(".llamaflow/cache"), help="where bases are kept")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    repeats, tokens = (1, 8) if given.quick else (given.repeats, given.tokens)
    with tempfile.TemporaryDirectory(prefix="llamaflow-benchmark-") as beside:
        work = Path(beside)
        inputs = serve_inputs.make(work, given.cache.absolute(), None if given.quick else given.model, REGISTERED)
        before = os.getloadavg()
        found = asyncio.run(measure(inputs, work / "cache", repeats, tokens))
        made = report(found) | {"many": asyncio.run(many(inputs, work / "cache", tokens))}
        print(table(made))
        facts = {"model": inputs.base.id, "precision": inputs.precision, "threads": given.threads, "repeats": repeats}
        print(json.dumps(facts | {"load": before, "load_at_end": os.getloadavg(), "results": made}, indent=1))


if __name__ == "__main__":
    main()
