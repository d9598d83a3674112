"""A head that takes a moment where Nextflow takes ten seconds: for tests with a hundred jobs, where only its end matters.

The launcher hands its command line to this process and waits; a thread here leaves what a run of the stubs leaves: task
folders, trace, output, the trainer's folder, the result on S3.
"""

from __future__ import annotations

import hashlib
import json
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from finetune import stub
from finetune.__main__ import read_step
from finetune.progress import write_report

LAUNCHER = """#!{python} -IS
import json, os, socket, sys
with socket.create_connection(("127.0.0.1", {port})) as head:
    head.sendall(json.dumps([sys.argv[1:], os.environ["LLAMAFLOW_RUN"]]).encode() + b"\\n")
    sys.exit(int(head.makefile().readline() or 1))
"""
FIELDS = (
    "task_id", "hash", "native_id", "name", "process", "tag", "status", "exit", "attempt", "submit", "start", "complete",
    "duration", "realtime", "queue", "%cpu", "peak_rss", "workdir", "error_action",
)  # fmt: skip
STAGES = {
    "DOWNLOAD_DATA": "download",
    "FETCH_MODEL": "fetch",
    "PREPARE_DATA": "prepare",
    "FINE_TUNE": "train",
    "EVALUATE": "evaluate",
    "UPLOAD_MODEL": "upload",
}
LEAVES = {
    "source": ("download", "data/source.json"),
    "base_info": ("fetch", "base.json"),
    "resolved": ("prepare", "prepared/resolved.json"),
    "adapter": ("train", "adapter"),
    "result": ("train", "result.json"),
    "metrics": ("train", "metrics.csv"),
    "evaluation": ("evaluate", "evaluation.json"),
}
"""What UPLOAD_MODEL takes: its name, the step that left it, and where."""


@contextmanager
def quick_nextflow(folder: Path) -> Iterator[Path]:
    """The launcher, until the block ends."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Head)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    launcher = folder / "quick-nextflow"
    launcher.write_text(LAUNCHER.format(python=sys.executable, port=server.server_address[1]))
    launcher.chmod(0o755)
    try:
        yield launcher
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Head(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        argv, job = json.loads(self.rfile.readline())
        given = {name: Path(value) for name, value in pairwise(argv) if name.startswith("-")}
        Run(job, given["-params-file"].parent, given["-work-dir"]).carry()
        self.wfile.write(b"0\n")


class Run:
    """One launch.

    Args:
        job: Its id.
        folder: Its own folder: stdout.log, trace.tsv.
        work: The task folders.
    """

    def __init__(self, job: str, folder: Path, work: Path) -> None:
        self._job, self._folder, self._work = job, folder, work
        self._steps = Path(json.loads((folder / "params.json").read_text())["steps"])
        self._trace = folder / "trace.tsv"

    def carry(self) -> None:
        """Every stage in turn; one that an earlier launch ended is cached."""
        self._trace.write_text("\t".join(FIELDS) + "\n")
        for number, (process, step) in enumerate(STAGES.items(), 1):
            task_hash, home = self._task(process)
            done = (home / ".exitcode").exists()
            with (self._folder / "stdout.log").open("a") as out:
                out.write(f"[{task_hash}] {'Cached' if done else 'Submitted'} process > {process} ({self._job})\n")
            if not done:
                self._do(step, home)
            self._row(number, process, task_hash, home, "CACHED" if done else "COMPLETED")

    def _task(self, process: str) -> tuple[str, Path]:
        digest = hashlib.md5(f"{self._job} {process}".encode()).hexdigest()
        return f"{digest[:2]}/{digest[2:8]}", self._work / digest[:2] / digest[2:]

    def _do(self, step: str, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        (home / ".command.begin").touch()
        inputs = {name: self._task(_process(of))[1] / path for name, (of, path) in LEAVES.items()}
        stub.WORK[step](read_step(step, self._steps / f"{step}.json"), inputs if step == "upload" else {}, home)
        if not (home / f"{step}.report.json").exists():
            write_report(home, step, f"Stub of {step} done.", {})
        (home / ".exitcode").write_text("0")

    def _row(self, number: int, process: str, task_hash: str, home: Path, status: str) -> None:
        now = str(int(time.time() * 1000))
        cells = dict.fromkeys(FIELDS, "-") | {
            "task_id": str(number), "hash": task_hash, "process": process, "status": status, "exit": "0", "attempt": "1",
            "submit": now, "start": now, "complete": now, "workdir": str(home),
        }  # fmt: skip
        with self._trace.open("a") as file:
            file.write("\t".join(cells.values()) + "\n")


def _process(step: str) -> str:
    return next(process for process, name in STAGES.items() if name == step)
