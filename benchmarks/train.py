"""Trained tokens a CPU second, peak memory and loss curves, side by side with what users would pick instead.

`python -m benchmarks.train [--quick] [--repeats 5] [--examples 40] [--work FOLDER] [--threads N]` runs every contender once a
round, in turning order, each in a process of its own, and prints a table and JSON. What a folder already holds is not run
again, so a run that was broken off goes on. `gpu` as an argument: what is measured on an accelerator alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import train_contenders, train_data
from finetune import environment

GOALS = {"trl_packed": 1.5, "trl_default": 3.0, "script": 4.5}
TITLES = {
    "ours": "LlamaFlow",
    "ours_packed": "LlamaFlow, packed",
    "trl_packed": "TRL SFTTrainer, packed, no gradient checkpointing",
    "trl_default": "TRL SFTTrainer, default",
    "script": "plain script, padded to 512",
    "unsloth": "Unsloth",
}


def contenders() -> list[str]:
    """Who can run here."""
    names = ["ours", "ours_packed", "trl_packed", "trl_default", "script"]
    return names + (["unsloth"] if importlib.util.find_spec("unsloth") else [])


def warm_up() -> None:
    """Import once what every contender imports: they are forked from here, before any thread was started."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers
    import trl  # noqa: F401

    import finetune.train.step  # noqa: F401

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def run(name: str, inputs: dict[str, Path], folder: Path, threads: int) -> dict[str, Any]:
    """One contender in a process of its own; what it said, from the folder if it ran there before."""
    if not (folder / "told.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        child = os.fork()
        if child == 0:
            _child(name, inputs, folder, threads)
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"{name} failed: see {folder / 'log'}")
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


def _child(name: str, inputs: dict[str, Path], folder: Path, threads: int) -> None:
    status = 1
    try:
        with (folder / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            train_contenders.main(name, inputs, folder, threads)
        status = 0
    except BaseException:
        import traceback

        (folder / "error").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def report(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median and spread of each, ratios round by round, and how far the curves lie apart."""
    made: dict[str, Any] = {}
    for name, runs in found.items():
        speeds = [told["tokens_a_cpu_second"] for told in runs]
        ratios = [
            ours["tokens_a_cpu_second"] / told["tokens_a_cpu_second"]
            for ours, told in zip(found["ours"], runs, strict=True)
        ]
        made[name] = {
            "tokens_a_cpu_second": statistics.median(speeds), "least": min(speeds), "most": max(speeds),
            "tokens_a_second": round(statistics.median(told["tokens"] / told["wall_seconds"] for told in runs), 1),
            "ours_is_quicker": round(statistics.median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios],
            "goal": GOALS.get(name), "peak_rss": statistics.median(told["peak_rss"] for told in runs),
            "peak_vram": statistics.median(told["peak_vram"] for told in runs), "losses": runs[0]["losses"],
            "curve_apart": _apart(found["ours"][0]["losses"], runs[0]["losses"]),
        }  # fmt: skip
    return made


def _apart(one: list[float], other: list[float]) -> float | None:
    """The largest difference of two curves over the same steps; None where steps are not the same (packed rows)."""
    return round(max(abs(a - b) for a, b in zip(one, other, strict=True)), 5) if len(one) == len(other) else None


def table(made: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| trainer | trained tokens a CPU second (spread) | ours is quicker | goal | peak memory | loss curve apart |"
    ]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for name, row in made.items():
        memory = row["peak_vram"] or row["peak_rss"]
        apart = "other steps" if row["curve_apart"] is None else f"{row['curve_apart']:.4f}"
        lines.append(
            f"| {TITLES[name]} | {row['tokens_a_cpu_second']:.1f} ({row['least']:.1f} to {row['most']:.1f}) | "
            f"{row['ours_is_quicker']:.2f} | {row['goal'] or ''} | {memory / 2**30:.2f} GiB | {apart if name != 'ours' else ''} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where it is measured, and how busy that is."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")]
    where, kind = train_contenders.where_and_kind()
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "device": str(where),
        "precision": kind, "load": [round(load, 2) for load in os.getloadavg()],
    }  # fmt: skip


def main() -> None:
    """The table, and JSON beside."""
    environment.yield_while_waiting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="?", choices=["compare", "gpu"], default="compare")
    parser.add_argument(
        "--quick", action="store_true", help="one round of 16 examples: whether it works, not how fast it is"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--threads", type=int, default=environment.threads() or os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, help="a folder to go on in; left out: a new one, removed at the end")
    parser.add_argument("--model", default=train_data.MODEL, help="a name of the models file, or a folder (absolute)")
    parser.add_argument("--cache", type=Path, default=Path(".llamaflow/cache"), help="where bases are kept")
    parser.add_argument("--only", nargs="+", choices=list(TITLES), help="ours is always run")
    given = parser.parse_args()
    if given.section == "gpu":
        from benchmarks import train_gpu

        print(json.dumps(train_gpu.measure(), indent=1))
        return
    repeats, examples = (1, 16) if given.quick else (given.repeats, given.examples)
    with tempfile.TemporaryDirectory(prefix="llamaflow-benchmark-") as beside:
        work = (given.work or Path(beside)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        warm_up()
        inputs = train_data.prepared(
            work / f"data-{examples}", given.cache.absolute(), given.model, examples, train_contenders.BATCH
        )
        names = [name for name in contenders() if given.only is None or name in ("ours", *given.only)]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        before = machine()
        for turn in range(repeats):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                told = run(name, inputs, work / f"{examples}-{given.threads}" / f"{turn}-{name}", given.threads)
                found[name].append(told)
                print(
                    f"{turn + 1}/{repeats} {name}: {told['tokens_a_cpu_second']} trained tokens a CPU second",
                    file=sys.stderr,
                    flush=True,
                )
        made = report(found)
        print(table(made))
        facts = {"machine": before, "load_at_end": os.getloadavg(), "threads": given.threads, "repeats": repeats}
        print(json.dumps(facts | {"data": train_data.described(work / f"data-{examples}"), "results": made}, indent=1))


if __name__ == "__main__":
    main()
