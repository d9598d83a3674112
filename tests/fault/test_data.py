"""Datasets that are no datasets: a line of 50 MB, NUL bytes, invalid UTF-8, zip bombs. Each fails with its sentence, in little memory.

Checked as a worker checks them and as PREPARE_DATA reads them, in a process that may have no more memory than it had before.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config import Data, Hyperparameters
from finetune.steps import Base, PrepareStep
from tests.app.worker.services import BUCKET, ROWS, World, environment
from tests.finetune.data.conftest import build_base

pytestmark = pytest.mark.fault

GOOD = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ROOM = 256 << 20
"""Bytes that the whole reading may take beyond what the process had when it began."""

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "long": (
        lambda: GOOD + b'{"messages": "' + b"x" * 50_000_000 + b'"}\n',
        "line 13: the row is longer than 10,000,000 bytes",
    ),
    "one-line": (lambda: b'{"messages": "' + b"x" * 50_000_000, "line 1: the row is longer than 10,000,000 bytes"),
    "nul": (lambda: GOOD + GOOD[:20] + bytes(1000) + b"\n", "line 13"),
    "utf-8": (lambda: GOOD + b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n', "line 13"),
    "bomb": (lambda: gzip.compress(bytes(600 << 20), 9), "longer than 10,000,000 bytes"),
    "bomb-of-bombs": (lambda: gzip.compress(gzip.compress(bytes(600 << 20), 9), 9), "line 1"),
}
"""What lies in a file, and what must be said of it."""

LIMITED = """
import json, resource, sys
def size():
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith('VmSize'))
def limit(room):
    resource.setrlimit(resource.RLIMIT_AS, (size() + room, resource.RLIM_INFINITY))
"""

CHECK = (
    LIMITED
    + """
import threading
from app.files.storage import connect
from app.settings import Settings
from app.worker.validate import Dataset, examine
from finetune.config import JobSpec
settings = Settings()
connect(settings).list_objects_v2(Bucket='llamaflow-data', MaxKeys=1)
limit(int(sys.argv[1]))
for uri in sys.argv[2:]:
    spec = JobSpec(model='tiny', training_file=uri)
    outcome = examine(settings, Dataset(uri, None, spec), threading.Event())
    print(json.dumps(outcome.as_error() if hasattr(outcome, 'as_error') else {'code': None, 'message': 'good'}))
"""
)

PREPARE = (
    LIMITED
    + """
from finetune.__main__ import main
from finetune.data import prepare
prepare.load(__import__('pathlib').Path(sys.argv[2]), None)
limit(int(sys.argv[1]))
sys.exit(main(sys.argv[3:]))
"""
)


def said(script: str, *words: str, env: dict[str, str] | None = None, status: int | None = 0) -> list[dict[str, Any]]:
    """What a limited process prints, a JSON object a line."""
    argv = [sys.executable, "-c", script, str(ROOM), *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert status is None or done.returncode == status, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


async def test_a_hostile_dataset_fails_in_validating_with_its_line(stored: World) -> None:
    uris = [f"s3://{BUCKET}/hostile/{name}.jsonl" for name in BAD]
    for uri, (content, _) in zip(uris, BAD.values(), strict=True):
        await asyncio.to_thread(stored.put, uri.removeprefix(f"s3://{BUCKET}/"), content())
    told = await asyncio.to_thread(said, CHECK, *uris, env=environment(stored.settings))
    for name, error in zip(BAD, told, strict=True):
        assert (error["code"], error["param"]) == ("invalid_file_format", "training_file"), (name, error)
        assert BAD[name][1] in error["message"], (name, error)
        assert len(error["message"]) < 2000, "a sentence, not the dataset"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("tokenizer") / "base")


def prepare(folder: Path, base: Path, content: bytes, name: str = "0001.jsonl") -> dict[str, Any]:
    """PREPARE_DATA on one file, in a limited process; its error.json."""
    (folder / "data" / "train").mkdir(parents=True)
    (folder / "data" / "train" / name).write_bytes(content)
    step = PrepareStep(data=Data(), hyperparameters=Hyperparameters(), seed=1, cache_dir=str(folder / "cache"))
    (folder / "prepare.json").write_text(step.text())
    made = Base(id="t", kind="path", location="x", revision="a" * 64, parameters=1, template_sha256="b" * 64)
    (folder / "base.json").write_text(made.text())
    words = ["prepare", "--job", str(folder / "prepare.json"), "--out", str(folder / "out")]
    inputs = {"data": folder / "data", "base": base, "base_info": folder / "base.json"}
    said(
        PREPARE,
        str(base),
        *words,
        *(word for key, path in inputs.items() for word in ("--in", f"{key}={path}")),
        status=65,
    )
    error: dict[str, Any] = json.loads((folder / "out" / "error.json").read_text())
    return error


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_a_hostile_dataset_fails_in_prepare_data_with_its_line(tmp_path: Path, base: Path, name: str) -> None:
    content, words = BAD[name]
    error = prepare(tmp_path, base, content())
    assert (error["code"], words in error["message"]) == ("invalid_file_format", True), error
    assert not (tmp_path / "cache" / "prepared").exists() or list((tmp_path / "cache" / "prepared").iterdir()) == []


@pytest.mark.slow
async def test_a_bomb_of_good_rows_is_told_by_how_much_it_grows(stored: World) -> None:
    row = {"messages": [{"role": "user", "content": "x" * 5_000_000}, {"role": "assistant", "content": "A"}]}
    packed = gzip.compress((json.dumps(row) + "\n").encode() * 80, 9)
    await asyncio.to_thread(stored.put, "hostile/good.jsonl.gz", packed)
    env = environment(stored.settings) | {"LLAMAFLOW_VALIDATE_BYTES": str(1 << 30)}
    (error,) = await asyncio.to_thread(said, CHECK, f"s3://{BUCKET}/hostile/good.jsonl.gz", env=env)
    assert (error["code"], "grows more than 200-fold" in error["message"]) == ("invalid_file_format", True), error
