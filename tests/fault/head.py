"""A launcher in place of Nextflow that is quick: the stubs of the steps one after another, each a process, no JVM.

`LLAMAFLOW_NEXTFLOW` names a script of `install(folder)`. What the worker reads is there as from Nextflow: the lines of its
output, the trace, task folders with `.command.begin` and `.exitcode`; a launch with `-resume` takes what earlier ones completed.
TERM ends the task, then the head.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from finetune import stub

FIELDS = (
    "hash", "name", "process", "status", "exit", "attempt", "submit", "start", "complete", "peak_rss", "workdir",
    "error_action",
)  # fmt: skip
TAKES: dict[str, dict[str, str]] = {
    "download": {},
    "fetch": {},
    "prepare": {"data": "download/data", "base": "fetch/base", "base_info": "fetch/base.json"},
    "train": {"prepared": "prepare/prepared", "base": "fetch/base", "base_info": "fetch/base.json"},
    "evaluate": {
        "prepared": "prepare/prepared", "base": "fetch/base", "base_info": "fetch/base.json", "adapter": "train/adapter",
    },
    "upload": {
        "source": "download/data/source.json", "base_info": "fetch/base.json",
        "resolved": "prepare/prepared/resolved.json", "adapter": "train/adapter", "result": "train/result.json",
        "metrics": "train/metrics.csv", "evaluation": "evaluate/evaluation.json",
    },
}  # fmt: skip
NAMES = {
    "download": "DOWNLOAD_DATA", "fetch": "FETCH_MODEL", "prepare": "PREPARE_DATA", "train": "FINE_TUNE",
    "evaluate": "EVALUATE", "upload": "UPLOAD_MODEL",
}  # fmt: skip


def install(folder: Path) -> Path:
    """Write the launcher into a folder; its path."""
    root = Path(__file__).resolve().parents[2]
    script = folder / "quick-nextflow"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m tests.fault.head "$@"\n')
    script.chmod(0o755)
    return script


class Head:
    """One launch.

    Args:
        argv: Nextflow's, as app/nextflow/command.py builds it.
    """

    def __init__(self, argv: list[str]) -> None:
        after = dict(itertools.pairwise(argv))
        self.work = Path(after["-work-dir"])
        self.trace = Path(after["-with-trace"])
        self.steps = Path(json.loads(Path(after["-params-file"]).read_text())["steps"])
        self.session = after.get("-resume") or os.environ["NXF_UUID"]
        self.task: int | None = None
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.task is not None:
            os.kill(self.task, signal.SIGTERM)

    def run(self) -> int:
        """Every step; Nextflow's exit status: 0, or 1."""
        self.trace.write_text("\t".join(FIELDS) + "\n")
        done: dict[str, Path] = {}
        for step in TAKES:
            if self.asked or not self._step(step, done):
                return 1
        (Path.cwd() / "model_s3.txt").write_bytes((done["upload"] / "model_s3.txt").read_bytes())
        return 0

    def _step(self, step: str, done: dict[str, Path]) -> bool:
        for attempt in range(1, 10):
            digest = hashlib.md5(f"{self.session} {step} {attempt}".encode(), usedforsecurity=False).hexdigest()
            folder = self.work / digest[:2] / digest[2:]
            done[step] = folder
            if _exit(folder) == 0:
                print(f"[{digest[:2]}/{digest[2:8]}] Cached process > {NAMES[step]}", flush=True)
                self._row(step, folder, attempt, "CACHED", 0, (time.time(),) * 3)
                return True
            if not folder.exists():
                return self._task(step, folder, attempt, done) == 0
        return False

    def _task(self, step: str, folder: Path, attempt: int, done: dict[str, Path]) -> int:
        submitted = time.time()
        folder.mkdir(parents=True)
        name = f"{folder.parent.name}/{folder.name}"[:9]
        print(f"[{name}] Submitted process > {NAMES[step]}", flush=True)
        inputs = [word for key, path in TAKES[step].items() for word in ("--in", f"{key}={_found(path, done)}")]
        self.task = os.fork()
        if self.task == 0:
            _work(step, self.steps / f"{step}.json", folder, inputs)
        if self.asked:
            os.kill(self.task, signal.SIGTERM)
        _, status = os.waitpid(self.task, 0)
        self.task = None
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        (folder / ".exitcode").write_text(str(code))
        self._row(step, folder, attempt, "FAILED" if code else "COMPLETED", code, (submitted, submitted, time.time()))
        return code

    def _row(self, step: str, folder: Path, attempt: int, status: str, code: int, times: tuple[float, ...]) -> None:
        submit, start, complete = (str(int(at * 1000)) for at in times)
        name = f"{folder.parent.name}/{folder.name}"[:9]
        row = [name, NAMES[step], NAMES[step], status, str(code), str(attempt), submit, start, complete, "1000000",
               str(folder), "TERMINATE" if code else "-"]  # fmt: skip
        with self.trace.open("a") as file:
            file.write("\t".join(row) + "\n")


def _work(step: str, job: Path, folder: Path, inputs: list[str]) -> None:
    """The task's process: as the stub of the step in the task's folder."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 70
    try:
        os.chdir(folder)
        (folder / ".command.begin").touch()
        log = os.open(folder / ".command.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = stub.main([step, "--job", str(job), *inputs])
    finally:
        sys.stdout.flush()
        os._exit(code)


def _found(path: str, done: dict[str, Path]) -> Path:
    step, _, rest = path.partition("/")
    return done[step] / rest


def _exit(folder: Path) -> int | None:
    try:
        return int((folder / ".exitcode").read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(Head(sys.argv[1:]).run())
