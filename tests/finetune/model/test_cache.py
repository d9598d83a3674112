"""The content-addressed cache: equal files are one base, half-made ones are never seen, pickles never taken."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.exit_codes import StepError
from finetune.model import cache
from finetune.steps import ModelSource

pytestmark = pytest.mark.unit

Make = Callable[..., Path]


def test_a_fingerprint_is_of_names_and_content_alone(tmp_path: Path, model_folder: Make) -> None:
    one, two = model_folder(tmp_path / "one"), model_folder(tmp_path / "two")
    os.utime(two / "config.json", (1, 1))
    (two / "README.md").write_text("not a base's file")
    assert cache.fingerprint(one) == cache.fingerprint(two)
    (two / "config.json").write_text('{"model_type": "mistral"}')
    assert cache.fingerprint(one) != cache.fingerprint(two)


def test_a_fingerprint_is_what_the_documentation_says(tmp_path: Path, model_folder: Make) -> None:
    folder = model_folder(tmp_path)
    lines = [f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in sorted(folder.iterdir())]
    assert cache.fingerprint(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (
            ["config.json", "model.safetensors", "consolidated.safetensors", "README.md", "run.py"],
            ["config.json", "model.safetensors"],
        ),
        (
            ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "original.safetensors"],
            ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (
            ["config.json", "model.safetensors", "pytorch_model.bin", "../x.safetensors"],
            ["config.json", "model.safetensors"],
        ),
    ],
)
def test_only_a_bases_own_files_are_taken(names: list[str], taken: list[str]) -> None:
    assert cache.wanted(names) == taken


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["config.json", "pytorch_model.bin"], "only pickled weights"),
        (["config.json"], "no weights"),
        (["model.safetensors"], "no config.json"),
    ],
)
def test_a_folder_that_is_no_safetensors_model_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(StepError, match=said) as caught:
        cache.wanted(names)
    assert caught.value.code.name == "unsupported_model"


def test_parameters_are_counted_from_headers(tmp_path: Path, model_folder: Make) -> None:
    assert cache.count_parameters(model_folder(tmp_path, shape=(2, 3))) == 6


def test_a_file_that_only_claims_to_be_safetensors_is_refused(tmp_path: Path, model_folder: Make) -> None:
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x80\x04" + bytes(100))
    with pytest.raises(StepError, match="no safetensors file"):
        cache.count_parameters(folder)


def test_weights_in_several_files_must_all_be_there(tmp_path: Path, model_folder: Make) -> None:
    folder = model_folder(tmp_path)
    source = ModelSource(id="x", kind="path", location=str(folder))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(StepError, match=r"model-00002-of-00002\.safetensors is missing"):
        cache.describe(source, folder, "a" * 64)
    (folder / "model-00002-of-00002.safetensors").write_bytes(
        (folder / "model-00001-of-00002.safetensors").read_bytes()
    )
    assert cache.describe(source, folder, "a" * 64).parameters == 12


def test_the_template_in_force_is_hashed(tmp_path: Path, model_folder: Make) -> None:
    folder = model_folder(tmp_path, template="own")
    own = cache.describe(ModelSource(id="x", kind="path", location=str(folder)), folder, "a" * 64)
    given = cache.describe(ModelSource(id="x", kind="path", location=str(folder), template="given"), folder, "a" * 64)
    assert own.template_sha256 == hashlib.sha256(b"own").hexdigest()
    assert given.template_sha256 == hashlib.sha256(b"given").hexdigest()


def test_a_named_default_template_is_found(tmp_path: Path, model_folder: Make) -> None:
    folder = model_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]})
    )
    assert cache.chat_template(folder) == "d"


def test_a_folder_whose_making_fails_is_never_seen(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "thing"

    def fail() -> None:
        with cache.making(target) as folder:
            (folder / "half").write_text("half")
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        fail()
    assert list(target.parent.iterdir()) == []


def test_what_a_killed_process_left_is_removed_a_day_later(tmp_path: Path) -> None:
    for name, age in (("old", 25 * 3600), ("new", 60)):
        (tmp_path / f".{name}").mkdir()
        os.utime(tmp_path / f".{name}", (time.time() - age,) * 2)
    with cache.making(tmp_path / "thing"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new", "thing"]


def test_equal_bases_from_two_sources_are_one_folder_that_nobody_can_write(tmp_path: Path, model_folder: Make) -> None:
    first = cache.adopt(tmp_path, lambda folder: model_folder(folder) and None)
    second = cache.adopt(tmp_path, lambda folder: model_folder(folder) and None)
    assert first == second
    assert [path.name for path in (tmp_path / "models").iterdir()] == [first]
    assert (cache.model_folder(tmp_path, first) / "config.json").stat().st_mode & 0o222 == 0


def test_two_who_want_the_same_wait_for_each_other(tmp_path: Path) -> None:
    order: list[str] = []
    inside = threading.Event()

    def late() -> None:
        inside.wait(5)
        with cache.locked(tmp_path, "key"):
            order.append("late")

    thread = threading.Thread(target=late)
    thread.start()
    with cache.locked(tmp_path, "key"):
        inside.set()
        thread.join(0.2)
        order.append("early")
    thread.join(5)
    assert order == ["early", "late"]


def test_a_branch_name_is_no_address(tmp_path: Path, model_folder: Make) -> None:
    assert cache.find_model(tmp_path, "main") is None
    with pytest.raises(ValueError, match="neither a commit nor a sha256"):
        cache.model_folder(tmp_path, "../../etc")
