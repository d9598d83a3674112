"""Figures of the service under load: submissions, claims, callbacks, live streams, memory, and procrastinate beside them.

`.venv/bin/python -m benchmarks.service [--quick] [--beside TREE] [section …]` prints a table and JSON. Each section has a
database of its own; what is compared is measured in turns within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import beside_procrastinate, callbacks, claims, pipelines, streams, submissions
from benchmarks.place import place


@dataclass(frozen=True)
class Asked:
    """How much to measure."""

    quick: bool
    beside: Path | None
    heads: int | None


def _submissions(asked: Asked) -> dict[str, Any]:
    seconds, rounds = (3, 2) if asked.quick else (10, 3)
    with place() as here:
        return submissions.measure(here, seconds=seconds, rounds=rounds, beside=asked.beside)


def _claims(asked: Asked) -> dict[str, Any]:
    with place() as here:
        return claims.measure(here, quick=asked.quick)


def _callbacks(asked: Asked) -> dict[str, Any]:
    receiver = callbacks.Receiver()
    with place(webhook_allow=[receiver.address]) as here:
        return callbacks.measure(here, receiver, jobs=30 if asked.quick else 200)


def _streams(asked: Asked) -> dict[str, Any]:
    with place() as here:
        return streams.measure(here, rounds=10 if asked.quick else 30)


def _memory(asked: Asked) -> dict[str, Any]:
    with place() as here:
        return pipelines.measure(here, heads=asked.heads or (10 if asked.quick else 40))


def _procrastinate(asked: Asked) -> dict[str, Any]:
    with place() as here:
        return beside_procrastinate.measure(here, quick=asked.quick)


SECTIONS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "submissions": _submissions,
    "claims": _claims,
    "procrastinate": _procrastinate,
    "callbacks": _callbacks,
    "streams": _streams,
    "memory": _memory,
}


def table(title: str, rows: dict[str, Any], indent: int = 0) -> None:
    """Print nested figures, a line each."""
    print(" " * indent + title)
    for name, value in rows.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            table(name, value, indent + 2)
        elif isinstance(value, dict):
            print(" " * (indent + 2) + f"{name:34} " + "  ".join(f"{key} {figure}" for key, figure in value.items()))
        else:
            print(" " * (indent + 2) + f"{name:34} {value}")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="Default: all.")
    parser.add_argument("--quick", action="store_true", help="Shorter, with fewer rounds.")
    parser.add_argument("--beside", type=Path, help="Another source tree whose API is measured in the same rounds.")
    parser.add_argument("--heads", type=int, help="Pipelines of the section memory; default 40, quick 10.")
    given = parser.parse_args()
    asked = Asked(given.quick, given.beside, given.heads)
    found: dict[str, Any] = {"cores": os.cpu_count(), "load_at_start": round(os.getloadavg()[0], 2)}
    for name in given.sections or SECTIONS:
        print(f"== {name}", file=sys.stderr, flush=True)
        found[name] = SECTIONS[name](asked)
        table(name, found[name])
    found["load_at_end"] = round(os.getloadavg()[0], 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
