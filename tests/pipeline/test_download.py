"""DOWNLOAD_DATA against a real server: the pinned bytes, once, under names nobody else chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune import download
from finetune.exit_codes import StepError
from finetune.steps import DownloadStep, Pinned, Source

pytestmark = pytest.mark.pipeline

ROWS = b"".join(b'{"text": "t%d", "source": "s"}\n' % number for number in range(12))


def run(storage: Any, folder: Path, *objects: Pinned, validation: tuple[Pinned, ...] = ()) -> tuple[Source, str]:
    """What source.json says, and the sentence of the report."""
    step = DownloadStep(
        training=list(objects), validation=list(validation), s3=storage.access, cache_dir=str(folder / "cache")
    )
    download.run(step, {}, folder)
    source = Source.model_validate_json((folder / "data" / "source.json").read_bytes())
    return source, json.loads((folder / "download.report.json").read_text())["message"]


def test_the_dataset_lies_there_and_is_counted(storage: Any, tmp_path: Path) -> None:
    etag = storage.put("rows.jsonl", ROWS)
    source, message = run(storage, tmp_path, Pinned(uri=storage.uri("rows.jsonl"), etag=etag, size=len(ROWS)))
    assert (tmp_path / "data" / "train" / "0001.jsonl").read_bytes() == ROWS
    assert (source.files[0].name, source.files[0].etag, source.files[0].size) == ("train/0001.jsonl", etag, len(ROWS))
    assert message == f"Downloaded 12 examples (362 bytes) from {storage.uri('rows.jsonl')}."


def test_file_names_are_never_what_users_wrote(storage: Any, tmp_path: Path) -> None:
    key = "a/$(touch pwned);..%2F..%2Fx.JSON.GZ"
    storage.put(key, b"not really gzip")
    run(storage, tmp_path, Pinned(uri=storage.uri(key)))
    assert [path.name for path in (tmp_path / "data" / "train").iterdir()] == ["0001.json.gz"]


def test_the_same_object_is_fetched_once(storage: Any, tmp_path: Path) -> None:
    pinned = Pinned(uri=storage.uri("once.jsonl"), etag=storage.put("once.jsonl", ROWS), size=len(ROWS))
    first, _ = run(storage, tmp_path, pinned)
    storage.client.delete_object(Bucket="llamaflow-data", Key="once.jsonl")
    second, _ = run(storage, tmp_path, pinned, validation=(pinned,))
    assert second.files[0] == first.files[0]
    assert second.files[1].split == "validation"


def test_a_cached_object_that_is_no_longer_what_was_fetched_is_fetched_again(storage: Any, tmp_path: Path) -> None:
    pinned = Pinned(uri=storage.uri("spoilt.jsonl"), etag=storage.put("spoilt.jsonl", ROWS), size=len(ROWS))
    first, _ = run(storage, tmp_path, pinned)
    (kept,) = (tmp_path / "cache" / "datasets").glob("*/object")
    kept.unlink()
    kept.write_bytes(ROWS.replace(b"t1", b"t9"))
    second, _ = run(storage, tmp_path, pinned)
    assert second.files == first.files
    assert (tmp_path / "data" / "train" / "0001.jsonl").read_bytes() == ROWS


def test_an_object_changed_since_the_check_is_refused_and_nothing_kept(storage: Any, tmp_path: Path) -> None:
    etag = storage.put("moving.jsonl", ROWS)
    storage.put("moving.jsonl", ROWS + ROWS)
    with pytest.raises(StepError) as caught:
        run(storage, tmp_path, Pinned(uri=storage.uri("moving.jsonl"), etag=etag, size=len(ROWS)))
    assert (caught.value.code.name, caught.value.param) == ("object_changed", "training_file")
    assert list((tmp_path / "cache" / "datasets").iterdir()) == []


def test_a_missing_validation_set_names_its_field(storage: Any, tmp_path: Path) -> None:
    storage.put("here.jsonl", ROWS)
    with pytest.raises(StepError) as caught:
        run(
            storage,
            tmp_path,
            Pinned(uri=storage.uri("here.jsonl")),
            validation=(Pinned(uri=storage.uri("gone.jsonl")),),
        )
    assert (caught.value.code.name, caught.value.param) == ("file_not_found", "validation_file")


def test_a_local_file_needs_no_server(storage: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(ROWS)
    source, _ = run(storage, tmp_path, Pinned(uri=(tmp_path / "mine.jsonl").as_uri()))
    assert source.files[0].etag is None
    assert (tmp_path / "data" / "train" / "0001.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize(
    ("content", "examples"),
    [
        (b'{"a": 1}\n\n  \n{"a": 2}', 2),
        (b"", None),
        (b'\xef\xbb\xbf{"a": 1}\n', 1),
        (b"[1, 2]\n", None),
        (b"text,source\na,b\n", None),
        (b'{"a": "' + b"x" * 3_000_000 + b'"}\n{}\n', 2),
    ],
)
def test_examples_are_counted_without_parsing(tmp_path: Path, content: bytes, examples: int | None) -> None:
    (tmp_path / "file").write_bytes(content)
    assert download.count_examples(tmp_path / "file") == examples
