"""Tokens are made once: by what decides them, whoever asks at the same time, and never believed without a look."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.config import Data
from finetune.data import parallel, shards, unpack
from finetune.data.arrays import Examples
from finetune.data.problems import File
from finetune.data.shards import Task, make
from finetune.data.tokenizer import TextTokenizer
from finetune.exit_codes import StepError
from finetune.model import prune
from finetune.model.cache import file_sha256

pytestmark = pytest.mark.unit

Prepare = Callable[..., Path]


def chats(n: int, start: int = 0) -> bytes:
    """JSON Lines of different rows."""
    return b"".join(
        b'{"messages": [{"role": "user", "content": "Q%d"}, {"role": "assistant", "content": "A%d"}]}\n' % (at, at)
        for at in range(start, start + n)
    )


def told(out: Path) -> dict[str, Any]:
    """The numbers of prepare.report.json."""
    value: dict[str, Any] = json.loads((out / "prepare.report.json").read_text())["data"]
    return value


def entries(tmp_path: Path, kind: str = "tokens") -> list[Path]:
    """What the cache keeps of a kind."""
    return sorted((tmp_path / "cache" / kind).iterdir())


def spoil(path: Path) -> None:
    """Change the last byte of a file as a failing disk would."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(content))


def tasks(tmp_path: Path, base: Path, name: str, files: int = 4, **data: Any) -> list[Task]:
    """Files to be tokenised, with a cache and targets of their own below `name`."""
    found = []
    for number in range(files):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(chats(30, start=100 * number))
        file = File(path, path.name, "train", file_sha256(path))
        asked = Data(format="messages", **data)
        found.append(Task(file, asked, base, None, tmp_path / name, tmp_path / name / f"made-{number}"))
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; folders by name alone."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("change", "tokenised"),
    [
        ({"learning_rate": 1e-4}, 0),
        ({"max_length": 100}, 0),
        ({"seed": 7, "data": {"validation_split": 0.1}}, 0),
        ({"data": {"overlength": "drop"}}, 0),
        ({"data": {"format": "messages"}}, 0),
        ({"data": {"train_on": "all"}}, 1),
        ({"template": "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"}, 1),
    ],
)
def test_only_what_decides_the_tokens_has_them_made_again(
    prepare_files: Prepare, change: dict[str, Any], tokenised: int
) -> None:
    assert told(prepare_files({"a.jsonl": chats(12)}))["files_tokenised"] == 1
    again = told(prepare_files({"a.jsonl": chats(12)}, out="again", **change))
    assert (again["cached"], again["files_tokenised"]) == (False, tokenised)


def test_a_file_more_is_one_file_to_tokenise(prepare_files: Prepare) -> None:
    prepare_files({"a.jsonl": chats(12)})
    more = prepare_files({"a.jsonl": chats(12), "b.jsonl": chats(3, start=50)}, out="more")
    assert told(more)["files_tokenised"] == 1
    assert len(Examples(more / "prepared", "train")) == 15


@pytest.mark.parametrize("kind", ["tokens", "prepared"])
def test_what_was_spoilt_in_the_cache_is_noticed_and_made_again(
    prepare_files: Prepare, tmp_path: Path, kind: str
) -> None:
    first = content(prepare_files({"a.jsonl": chats(12)}) / "prepared")
    (entry,) = entries(tmp_path, kind)
    spoil(entry / "train.tokens.npy")
    change = {"learning_rate": 1e-4} if kind == "tokens" else {}
    again = prepare_files({"a.jsonl": chats(12)}, out="again", **change)
    assert (told(again)["cached"], told(again)["files_tokenised"]) == (False, int(kind == "tokens"))
    assert content(again / "prepared")["train.tokens.npy"] == first["train.tokens.npy"]
    third = prepare_files({"a.jsonl": chats(12)}, out="third", **change)
    assert told(third)["cached"]


@pytest.mark.parametrize("name", ["sums.json", "train.mask.npy"])
def test_an_entry_that_lost_a_file_is_made_again(
    tmp_path: Path, base: Path, tokenizer: TextTokenizer, name: str
) -> None:
    (task,) = tasks(tmp_path, base, "cache", files=1)
    make(task, tokenizer)
    (entry,) = entries(tmp_path)
    (entry / name).unlink()
    assert not make(task, tokenizer).cached
    assert make(task, tokenizer).cached


def test_a_file_with_bad_rows_is_not_kept_and_the_good_ones_beside_it_are(
    prepare_files: Prepare, tmp_path: Path
) -> None:
    with pytest.raises(StepError):
        prepare_files({"a.jsonl": chats(12), "b.jsonl": b"{}\n"})
    assert len(entries(tmp_path)) == 1
    mended = prepare_files({"a.jsonl": chats(12), "b.jsonl": chats(1, start=50)}, out="mended")
    assert told(mended)["files_tokenised"] == 1


def test_two_that_want_the_same_tokens_make_them_once(tmp_path: Path, base: Path, tokenizer: TextTokenizer) -> None:
    (one,) = tasks(tmp_path, base, "cache", files=1)
    found: list[bool] = []

    def want(place: str) -> None:
        found.append(make(replace(one, target=tmp_path / place), tokenizer).cached)

    both = [threading.Thread(target=want, args=(place,)) for place in ("0", "1")]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(found) == [False, True]
    assert content(tmp_path / "0") == content(tmp_path / "1")


def test_processes_side_by_side_make_what_one_makes(tmp_path: Path, base: Path, tokenizer: TextTokenizer) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"messages": 1}\n' + chats(1))
    file = File(bad, bad.name, "train", file_sha256(bad))
    alone, together = (
        [*made, replace(made[0], file=file, target=made[0].cache / "made-bad")]
        for made in (tasks(tmp_path, base, "alone"), tasks(tmp_path, base, "together"))
    )
    serial, at_once = parallel.gather(alone, tokenizer, 1), parallel.gather(together, tokenizer, 2)
    for one, other in zip(serial, at_once, strict=True):
        assert content(one.folder) == content(other.folder)
        assert (one.rows, one.problems, one.cached) == (other.rows, other.problems, other.cached)
    assert [shard.rows for shard in at_once] == [30, 30, 30, 30, 1]
    assert content(tmp_path / "alone" / "tokens").keys() == content(tmp_path / "together" / "tokens").keys()


def test_a_prefix_of_many_kinds_of_files_is_the_same_dataset_however_many_work_on_it(
    prepare_files: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "0001.jsonl": chats(20),
        "0002.jsonl.gz": gzip.compress(chats(20, start=20)),
        "0003.jsonl.zst": unpack.zstd.compress(chats(20, start=40)),
        "0004.json": b"[" + b",".join(chats(20, start=60).splitlines()) + b"]",
        "0005.jsonl": chats(5, start=10),
    }
    monkeypatch.setattr(parallel, "WORTH_BYTES", 1)
    found = []
    for count in ("1", "2"):
        monkeypatch.setenv("LLAMAFLOW_THREADS", count)
        out = prepare_files(files, {"v.jsonl": chats(3, start=79)}, out=count)
        assert (told(out)["files_tokenised"], told(out)["duplicates"], told(out)["leaked"]) == (6, 5, 1)
        found.append(content(out / "prepared"))
        shutil.rmtree(tmp_path / "cache")
    assert found[0] == found[1]
    assert (
        Examples(tmp_path / "2" / "prepared", "train").files.tolist()
        == [0] * 20 + [1] * 20 + [2] * 20 + [3] * 20 + [4] * 5
    )


def test_one_process_for_each_processor_but_none_for_nothing(
    tmp_path: Path, base: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tasks(tmp_path, base, "cache", files=3)
    monkeypatch.setenv("LLAMAFLOW_THREADS", "2")
    assert parallel.processes(found, tokenizer) == 1
    monkeypatch.setattr(parallel, "WORTH_BYTES", 1)
    assert parallel.processes(found, tokenizer) == 2
    monkeypatch.setenv("LLAMAFLOW_THREADS", "16")
    assert parallel.processes(found, tokenizer) == 3
    parallel.gather(found[:2], tokenizer, 1)
    assert parallel.processes(found, tokenizer) == 1


def test_processes_end_with_the_one_that_started_them(tmp_path: Path, base: Path) -> None:
    """The parent is killed while its processes work: they read from a pipe that nobody feeds."""
    slow = tmp_path / "slow"
    os.mkfifo(slow)
    script = tmp_path / "gather.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from finetune.config import Data\n"
        "from finetune.data import parallel\n"
        "from finetune.data.problems import File\n"
        "from finetune.data.shards import Task\n"
        "from finetune.data.tokenizer import load\n"
        "if __name__ == '__main__':\n"
        f"    base, folder = Path({str(base)!r}), Path({str(tmp_path)!r})\n"
        "    files = [File(folder / 'slow', str(n), 'train', str(n)) for n in range(2)]\n"
        "    tasks = [Task(f, Data(format='text'), base, None, folder / 'cache', folder / f.uri) for f in files]\n"
        "    parallel.gather(tasks, load(base), 2)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    with slow.open("wb"):  # opens once a process reads from it
        children = {int(pid) for pid in _children(parent.pid)}
        assert len(children) >= 2
        parent.kill()
        parent.wait()
        for _ in range(600):
            if not any(_lives(pid) for pid in children):
                break
            threading.Event().wait(0.1)
        assert [pid for pid in children if _lives(pid)] == []


def test_a_process_that_is_killed_fails_the_step_with_a_sentence(
    tmp_path: Path, base: Path, tokenizer: TextTokenizer
) -> None:
    slow, caught = tmp_path / "slow", []
    os.mkfifo(slow)
    files = [File(slow, str(n), "train", str(n)) for n in range(2)]
    given = [Task(file, Data(format="text"), base, None, tmp_path / "cache", tmp_path / file.uri) for file in files]

    def gather() -> None:
        try:
            parallel.gather(given, tokenizer, 2)
        except StepError as problem:
            caught.append(problem)

    thread = threading.Thread(target=gather)
    before = set(multiprocessing.active_children())
    thread.start()
    with slow.open("wb"):
        (one, *_) = set(multiprocessing.active_children()) - before
        one.kill()
        thread.join()
    assert [problem.code.name for problem in caught] == ["out_of_memory"]
    assert "was killed, most likely for want of memory" in caught[0].message


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_tokens_are_pruned_like_all_else(
    prepare_files: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_files({"a.jsonl": chats(12)})
    monkeypatch.setattr(prune, "RECENT_SECONDS", -1.0)
    removed = prune.prune(tmp_path / "cache", prune.SHARED, 0)
    assert {thing.path.parent.name for thing in removed} == {"tokens", "prepared"}


def test_a_batch_of_rows_is_bounded_by_its_text(
    tmp_path: Path, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = shards.encode

    def spy(rows: Any, *more: Any) -> Any:
        taken = list(rows)
        sizes.append(len(taken))
        return real(taken, *more)

    monkeypatch.setattr(shards, "encode", spy)
    monkeypatch.setattr(shards, "BATCH_CHARACTERS", 100)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"text": "%s"}\n' % (b"a" * length) for length in (60, 30, 30, 500, 1)))
    shards.tokenise(File(path, "a", "train", ""), Data(format="text"), tokenizer, tmp_path)
    assert sizes == [2, 1, 1, 1]
    assert np.diff(Examples(tmp_path, "train").offsets).size == 5
