"""Preparing a dataset holds a part of it at a time, and training maps what was prepared."""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.data import columns
from finetune.data.arrays import Examples, Writer
from finetune.data.columns import Block, blocks

pytestmark = pytest.mark.unit

MEGA = 1 << 20

PASSES = """
import sys, resource
from pathlib import Path
from finetune.config import Data
from finetune.data import repeats, statistics
from finetune.data.arrays import Examples
from finetune.data.intake import take_in
from finetune.data.problems import File
from finetune.data.shards import Shard

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
folder = Path(sys.argv[1])
files = [File(folder / "none", "none", "train", "")]
shards = [Shard(folder / "shard", rows=int(sys.argv[2]))]
data = Data(format="text", validation_split=0.1, overlength="truncate")
taken = take_in(data, 1, 280, files, shards, folder)
for split in ("train", "validation"):
    statistics.count(folder, split, data)
repeats.find(folder)
print(peak() - before, taken[0].kept + taken[1].kept)
"""

WHOLE = """
import json, sys, resource
from pathlib import Path
from finetune.__main__ import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

peaks = []
for name in sys.argv[2:]:
    folder = Path(sys.argv[1]) / name
    given = [f"--in={key}={folder / path}" for key, path in (("data", "data"), ("base_info", "base.json"))]
    status = main(["prepare", "--job", str(folder / "prepare.json"), *given, f"--in=base={folder.parent / 'base'}", "--out", str(folder)])
    assert status == 0, status
    peaks.append(peak())
print(json.dumps(peaks))
"""


def write_shard(folder: Path, rows: int, length: int) -> None:
    """Random examples of one length, a thousand at a time."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with Writer(folder, "train") as writer:
        for begin in range(0, rows, 1000):
            writer.add(
                Block(
                    tokens=random.integers(0, 1000, 1000 * length, dtype=np.int32),
                    mask=np.ones(1000 * length, dtype=np.bool_),
                    lengths=np.full(1000, length),
                    lines=np.arange(begin, begin + 1000),
                    files=np.zeros(1000, dtype=np.int32),
                )
            )


def test_the_passes_over_hundreds_of_megabytes_of_tokens_hold_a_part(tmp_path: Path) -> None:
    rows, length = 100_000, 300
    write_shard(tmp_path / "shard", rows, length)
    done = subprocess.run(
        [sys.executable, "-c", PASSES, str(tmp_path), str(rows)], capture_output=True, text=True, check=True
    )
    grown, kept = map(int, done.stdout.split()[-2:])
    assert kept == rows
    assert grown < 100 * MEGA < rows * length * 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_prepared_in_the_memory_of_a_small_one(base: Path, tmp_path: Path, packed: bool) -> None:
    (tmp_path / "base").symlink_to(base)
    sizes = {"small": 4 * MEGA, "large": 192 * MEGA}
    for name, size in sizes.items():
        place = tmp_path / name / "data" / "train"
        place.mkdir(parents=True)
        (tmp_path / name / "base.json").write_text(
            json.dumps(
                {"id": "t", "kind": "path", "location": ".", "revision": "0", "parameters": 9, "template_sha256": ""}
            )
        )
        step = {"data": {}, "hyperparameters": {"max_length": 8192}, "seed": 1, "cache_dir": str(tmp_path / "cache")}
        (tmp_path / name / "prepare.json").write_text(json.dumps(step))
        with gzip.open(place / "a.gz", "wb", 1) if packed else (place / "a.jsonl").open("wb") as file:
            written = at = 0
            while written < size:
                row = {"text": f"{at} palavra ação 模型 " * 60}
                written += file.write(json.dumps(row).encode() + b"\n")
                at += 1
    command = [sys.executable, "-c", WHOLE, str(tmp_path), *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    small, large = json.loads(done.stdout.splitlines()[-1])
    assert large - small < 80 * MEGA


def test_a_pass_holds_no_more_than_a_block_unless_one_example_is_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "BLOCK_TOKENS", 10)
    monkeypatch.setattr(columns, "BLOCK_ROWS", 4)
    lengths = [3, 3, 3, 3, 25, 1, 1, 1, 1, 1, 1]
    with Writer(tmp_path, "train") as writer:
        ends = np.cumsum(lengths)
        writer.add(
            Block(
                tokens=np.arange(ends[-1], dtype=np.int32),
                mask=np.arange(ends[-1]) % 2 == 0,
                lengths=np.array(lengths),
                lines=np.arange(len(lengths)),
                files=np.zeros(len(lengths), dtype=np.int32),
            )
        )
    found = [block for (block,) in blocks(tmp_path, "train")]
    assert [block.lengths.tolist() for block in found] == [[3, 3, 3], [3], [25], [1, 1, 1, 1], [1, 1]]
    assert np.concatenate([block.tokens for block in found]).tolist() == list(range(ends[-1]))
    examples = Examples(tmp_path, "train")
    assert examples.trained.tolist() == [int(row.mask.sum()) for row in examples]


def test_training_maps_the_arrays_and_copies_an_example_at_most(tmp_path: Path) -> None:
    write_shard(tmp_path / "shard", 2000, 5)
    examples = Examples(tmp_path / "shard", "train")
    for part in (examples.tokens, examples.mask, examples.offsets, examples.lines):
        assert isinstance(part, np.memmap)
        assert not part.flags.writeable
    assert np.shares_memory(examples[3].tokens, examples.tokens)
    assert len(pickle.dumps(examples)) < 1000
    assert pickle.loads(pickle.dumps(examples)).tokens.tobytes() == examples.tokens.tobytes()
