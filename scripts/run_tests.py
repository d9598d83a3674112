"""`make test`: format, lint, types and import contracts, then every tier of tests, one after another, with a count for each.

Fails if a tier collects nothing or skips anything. `--slow` runs what `make test` leaves out;
tier names as arguments run only those.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
TIERS = ("unit", "db", "pipeline", "train", "e2e", "fault")
SIDE_BY_SIDE = ("unit", "db", "train")
"""Tiers whose files run two at a time, each process with services of its own; the others start whole machines of processes themselves."""
CHECKS: tuple[tuple[str, list[str]], ...] = (
    ("format", [str(BIN / "ruff"), "format", "--check", "--quiet", "."]),
    ("lint", [str(BIN / "ruff"), "check", "--quiet", "."]),
    ("imports", [str(BIN / "lint-imports"), "--no-cache"]),
    ("types", [str(BIN / "mypy")]),
)


def check() -> list[str]:
    """Run the static checks; the names of those that failed."""
    failed = []
    for name, argv in CHECKS:
        began = time.monotonic()
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        print(f"{name:9} {'ok' if done.returncode == 0 else 'FAILED':7} {time.monotonic() - began:6.1f} s", flush=True)
        if done.returncode:
            print(done.stdout[-8000:] + done.stderr[-4000:], flush=True)
            failed.append(name)
    return failed


def run_tier(tier: str, *, slow: bool, extra: list[str]) -> dict[str, float]:
    """Run one tier with pytest; its counts and seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        marks = f"{tier} and {'slow' if slow else 'not slow'}"
        print(f"\n== {tier}", flush=True)
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            marks,
            f"--junitxml={report}",
            "-p",
            "no:cacheprovider",
            "--durations=5",
            *(["-n", "2", "--dist", "loadfile"] if tier in SIDE_BY_SIDE and not slow else []),
            *extra,
        ]
        status = subprocess.run(argv, cwd=ROOT, env=environment(tier), check=False).returncode
        suite = ET.parse(report).getroot().find("testsuite") if report.exists() else None
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: float(suite.get(name, 0)) if suite is not None else 0.0 for name in names}
    return counts | {"status": float(status), "seconds": time.monotonic() - began}


def environment(tier: str) -> dict[str, str]:
    """One thread of arithmetic for tiny models: more would only wait for each other. The real model gets all cores."""
    return os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | ({} if tier in ("e2e", "gpu") else {"OMP_NUM_THREADS": "1"})


def verdict(tier: str, counts: dict[str, float], *, slow: bool) -> str:
    """Why a tier is not good enough; empty if it is."""
    if counts["tests"] == 0:
        return "" if slow else f"{tier} collected nothing"
    if counts["skipped"]:
        return f"{tier} skipped {counts['skipped']:.0f}"
    if counts["status"]:
        return f"{tier} failed"
    return ""


def main() -> int:
    """Run what was asked for; 0 if all of it is good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiers", nargs="*", choices=[*TIERS, "gpu", []], help="Only these tiers.")
    parser.add_argument("--slow", action="store_true", help="The slow tests instead of the others.")
    parser.add_argument("--no-checks", action="store_true", help="Leave out format, lint, imports and types.")
    given, extra = parser.parse_known_args()
    wrong = [] if given.no_checks or given.slow else check()
    passed = failed = 0.0
    lines = []
    for tier in given.tiers or TIERS:
        counts = run_tier(tier, slow=given.slow, extra=extra)
        bad = counts["failures"] + counts["errors"]
        passed += counts["tests"] - bad - counts["skipped"]
        failed += bad
        lines.append(f"{tier:9} {counts['tests']:4.0f} tests {counts['seconds']:6.1f} s")
        if reason := verdict(tier, counts, slow=given.slow):
            wrong.append(reason)
    print("\n" + "\n".join(lines))
    if wrong:
        print("not good: " + "; ".join(wrong))
    print(f"{passed:.0f} passed, {max(failed, float(bool(wrong and not failed))):.0f} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
