"""Submissions: how many jobs a second are accepted, and how long one takes at a steady rate, beside a bare route with one INSERT."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import psycopg

from app.embedded import folder
from app.embedded.part import Part
from app.settings import PROJECT_ROOT
from benchmarks import bare, load
from benchmarks.load import Answer, Order
from benchmarks.place import DATASET, KEY, MODEL, Place

STEADY = 100.0


@dataclass
class Target:
    """Something that takes submissions. cpu: its process's and Postgres's seconds of CPU a request, in each round."""

    name: str
    order: Order
    process: Part
    answers: list[Answer]
    cpu: list[tuple[float, float]]


def body(training_file: str) -> str:
    """A request as n8n or a script sends it, each with another seed."""
    fields: dict[str, Any] = {
        "model": MODEL,
        "training_file": training_file,
        "suffix": "support",
        "seed": load.MARK,
        "hyperparameters": {"n_epochs": 3, "batch_size": 8, "learning_rate": 0.001},
        "metadata": {"customer": "4711", "workflow": load.MARK},
    }
    return json.dumps(fields).replace(f'"seed": "{load.MARK}"', f'"seed": {load.MARK}')


def measure(place: Place, *, seconds: float, rounds: int, beside: Path | None) -> dict[str, Any]:
    """Every target in turn, round by round, at several numbers of connections and at a steady rate.

    Args:
        seconds: A target, round and load.
        beside: Another source tree whose API is measured in the same rounds.
    """
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        targets = _targets(place, stack, beside)
        loads: dict[str, tuple[int, float | None]] = {
            "16 connections": (16, None),
            "64 connections": (64, None),
            f"{STEADY:.0f} a second": (64, STEADY),
        }
        for title, (connections, rate) in loads.items():
            for _ in range(rounds):
                for target in targets:
                    _round(place, target, connections, rate, seconds)
            found[title] = {target.name: _summary(target) for target in targets}
            for target in targets:
                target.answers, target.cpu = [], []
    return found


def _targets(place: Place, stack: ExitStack, beside: Path | None, tree: Path = PROJECT_ROOT) -> list[Target]:
    with psycopg.connect(place.url) as db:
        db.execute(bare.TABLE)
    port = folder.free_port()
    argv = [sys.executable, "-m", "benchmarks.bare", str(port)]
    one_insert = stack.enter_context(place.running("bare", argv, place.environment(), port))
    api = stack.enter_context(place.serving(tree))
    uploaded = api.upload()
    order = Order(api.port, "/v1/fine_tuning/jobs", KEY, body(uploaded), connections=0, seconds=0)
    targets = [
        Target("bare route, one INSERT", replace(order, port=port, path="/jobs"), one_insert, [], []),
        Target("service, file-…", order, api.part, [], []),
        Target("service, s3://…", replace(order, body=body(DATASET)), api.part, [], []),
    ]
    if beside is not None:
        other = stack.enter_context(place.serving(beside))
        targets.append(Target(f"{beside.name}, file-…", replace(order, port=other.port), other.part, [], []))
    return targets


def _round(place: Place, target: Target, connections: int, rate: float | None, seconds: float) -> None:
    order = replace(target.order, connections=connections, rate=rate, seconds=seconds)
    before = _seconds(target.process.process.pid), _postgres(place)
    answer = load.send(order)
    after = _seconds(target.process.process.pid), _postgres(place)
    target.order = replace(target.order, first=order.first + answer.sent)
    target.answers.append(answer)
    _clear(place)
    target.cpu.append(((after[0] - before[0]) / answer.sent, (after[1] - before[1]) / answer.sent))
    print(
        f"  {target.name:26} {answer.rate:8.1f}/s  p50 {answer.p50_ms:8.2f}  p99 {answer.p99_ms:8.2f}", file=sys.stderr
    )
    if answer.refused:
        print(f"  refused: {answer.refused} {answer.example}", file=sys.stderr)


def _clear(place: Place) -> None:
    """Cancel what is open, so that every round begins with an empty queue."""
    with psycopg.connect(place.url) as db:
        db.execute(
            "update jobs set status = 'cancelled', finished_at = clock_timestamp() where status = 'validating_files'"
        )


def _summary(target: Target) -> dict[str, Any]:
    answers, cpu = target.answers, target.cpu
    return {
        "accepted_per_second": statistics.median(answer.rate for answer in answers),
        "p50_ms": statistics.median(answer.p50_ms for answer in answers),
        "p99_ms": statistics.median(answer.p99_ms for answer in answers),
        "refused": sum(sum(answer.refused.values()) for answer in answers),
        "process_cpu_ms": round(statistics.median(own for own, _ in cpu) * 1000, 3),
        "postgres_cpu_ms": round(statistics.median(theirs for _, theirs in cpu) * 1000, 3),
        "generator_cores": statistics.median(answer.cpu for answer in answers),
    }


def _seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _postgres(place: Place) -> float:
    """Seconds of CPU of the whole server; what ended sessions used is counted by their parent."""
    pid = int(json.loads((place.settings.state_dir / "pids" / "postgres.json").read_text())["pid"])
    server = psutil.Process(pid)
    total = 0.0
    for process in [server, *server.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # its session ended meanwhile, and its parent counts it
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
