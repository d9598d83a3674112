"""FETCH_MODEL from S3 and from a folder: pinned by the sha256 of the files, fetched once."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from finetune.exit_codes import StepError
from finetune.model import cache, fetch
from finetune.steps import Base, FetchStep, ModelSource

pytestmark = pytest.mark.pipeline

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": struct.pack("<Q", len(HEADER)) + HEADER + bytes(4),
    "pytorch_model.bin": b"\x80\x04 a pickle",
    "run.py": b"raise SystemExit",
}


def run(storage: Any, folder: Path, source: ModelSource) -> tuple[Base, dict[str, Any]]:
    """base.json, and the report's numbers."""
    fetch.run(FetchStep(model=source, s3=storage.access, cache_dir=str(folder / "cache")), {}, folder)
    report = json.loads((folder / "fetch.report.json").read_text())
    return Base.model_validate_json((folder / "base.json").read_bytes()), report["data"]


def on_s3(storage: Any, prefix: str, files: dict[str, bytes]) -> ModelSource:
    for name, content in files.items():
        storage.put(prefix + name, content)
    return ModelSource(id="mine", kind="s3", location=storage.uri(prefix))


def test_a_base_on_s3_is_pinned_by_its_files_and_fetched_once(storage: Any, tmp_path: Path) -> None:
    source = on_s3(storage, "models/mine/", FILES)
    base, first = run(storage, tmp_path, source)
    _, second = run(storage, tmp_path, source)
    place = (tmp_path / "base").resolve()
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors"]
    assert base.revision == cache.fingerprint(place) == place.name
    assert (first["cached"], second["cached"]) == (False, True)


def test_a_pinned_base_in_the_cache_needs_no_server(storage: Any, tmp_path: Path) -> None:
    source = on_s3(storage, "models/pinned/", FILES)
    base, _ = run(storage, tmp_path, source)
    for name in FILES:
        storage.client.delete_object(Bucket="llamaflow-data", Key=f"models/pinned/{name}")
    again, report = run(storage, tmp_path, source.model_copy(update={"revision": base.revision}))
    assert (again.revision, report["cached"]) == (base.revision, True)


def test_another_revision_than_asked_for_names_the_one_found(storage: Any, tmp_path: Path) -> None:
    source = on_s3(storage, "models/other/", FILES)
    found, _ = run(storage, tmp_path, source)
    with pytest.raises(StepError) as caught:
        run(storage, tmp_path, source.model_copy(update={"revision": "0" * 64}))
    assert (caught.value.code.name, caught.value.param) == ("model_not_found", "model")
    assert found.revision in caught.value.message


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        ({}, "model_not_found", "nothing below"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "unsupported_model", "only pickled weights"),
        (FILES | {"model.safetensors": b"\x80\x04 pickled all the same"}, "unsupported_model", "no safetensors file"),
        (FILES | {"config.json": b'{"model_type": "t5"}'}, "unsupported_model", "no causal language model"),
    ],
)
def test_what_is_no_model_is_refused(
    storage: Any, tmp_path: Path, files: dict[str, bytes], code: str, said: str
) -> None:
    source = on_s3(storage, f"models/bad-{said.replace(' ', '-')}/", files)
    with pytest.raises(StepError) as caught:
        run(storage, tmp_path, source)
    assert (caught.value.code.name, caught.value.param) == (code, "model")
    assert said in caught.value.message


def test_a_bucket_that_is_missing_is_a_model_not_found(storage: Any, tmp_path: Path) -> None:
    with pytest.raises(StepError) as caught:
        run(storage, tmp_path, ModelSource(id="x", kind="s3", location="s3://no-such-bucket/x/"))
    assert caught.value.code.name == "model_not_found"


def test_a_local_folder_is_used_where_it_lies(storage: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    source = ModelSource(id="x", kind="path", location=str(folder))
    base, _ = run(storage, tmp_path, source)
    assert (tmp_path / "base").resolve() == folder
    (folder / "config.json").write_bytes(b'{"model_type": "mistral"}')
    changed, _ = run(storage, tmp_path, source)
    assert changed.revision != base.revision


def test_a_package_that_is_not_installed_is_named(storage: Any, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no-such-package, which is not installed"):
        run(storage, tmp_path, ModelSource(id="x", kind="package", location="no-such-package"))
