"""UPLOAD_MODEL against a real server: the whole result, its manifest last, and every byte as it was."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from finetune import s3, stub
from finetune.config import Output
from finetune.exit_codes import StepError
from finetune.export import upload
from finetune.steps import (
    DownloadStep,
    EvaluateStep,
    ExportStep,
    FetchStep,
    Manifest,
    ModelSource,
    Pinned,
    TrainStep,
    UploadStep,
)

pytestmark = pytest.mark.pipeline


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """What the earlier steps leave, made by their stubs."""
    model = ModelSource(id="m", kind="package", location="m")
    stub.WORK["download"](DownloadStep(training=[Pinned(uri="s3://llamaflow-data/x")]), {}, tmp_path)
    stub.WORK["fetch"](FetchStep(model=model), {}, tmp_path)
    stub.WORK["prepare"](None, {}, tmp_path)
    stub.WORK["train"](TrainStep(lora={}, seed=1, state_dir=str(tmp_path / "train")), {}, tmp_path)
    stub.WORK["evaluate"](EvaluateStep(evaluation={}, seed=1), {}, tmp_path)
    places = {
        "adapter": "adapter",
        "resolved": "prepared/resolved.json",
        "statistics": "prepared/statistics.json",
        "result": "result.json",
        "source": "data/source.json",
    }
    places |= {"base_info": "base.json", "metrics": "metrics.csv", "evaluation": "evaluation.json"}
    return {name: tmp_path / place for name, place in places.items()}


def step(storage: Any, folder: Path, job: str, **output: Any) -> UploadStep:
    where = Output(path="s3://llamaflow-data/model/", **output)
    return UploadStep(job=job, output=where, config={"model": "m"}, s3=storage.access, state_dir=str(folder / "train"))


def keys(storage: Any, prefix: str) -> dict[str, bytes]:
    return {
        row.uri.removeprefix(storage.uri(prefix)): storage.get(row.uri)
        for row in s3.listing(storage.client, storage.uri(prefix))
    }


def test_the_result_lies_below_the_jobs_prefix_and_its_manifest_tells_every_byte(
    storage: Any, tmp_path: Path, inputs: dict[str, Path]
) -> None:
    for number in (15, 20):
        (tmp_path / "train" / f"checkpoint-{number}").mkdir()
        for name in (*upload.ADAPTER_FILES, "optimizer.pt"):
            (tmp_path / "train" / f"checkpoint-{number}" / name).write_text(f"{name} {number}")
    upload.run(step(storage, tmp_path, "ftjob-whole", archive="zip"), inputs, tmp_path)
    found = keys(storage, "model/ftjob-whole/")
    manifest = Manifest.model_validate_json(found.pop("manifest.json"))
    checkpoints = [f"checkpoints/step-{number}/{name}" for number in (10, 15, 20) for name in upload.ADAPTER_FILES]
    adapter = [f"adapter/{name}" for name in (*upload.ADAPTER_FILES, "README.md")]
    assert sorted(found) == sorted(
        [*adapter, *checkpoints, "evaluation.json", "metrics.csv", "model.zip", "model_s3.txt"]
    )
    assert {file.path: file.sha256 for file in manifest.files} == {
        key: hashlib.sha256(content).hexdigest() for key, content in found.items()
    }
    assert (tmp_path / "model_s3.txt").read_text() == "model uploaded to s3://llamaflow-data/model/ftjob-whole/\n"


def test_what_was_exported_goes_up_beside_the_adapter_and_into_the_manifest(
    storage: Any, tmp_path: Path, inputs: dict[str, Path]
) -> None:
    stub.WORK["export"](ExportStep(merge=True, gguf=True), {}, tmp_path)
    asked = step(storage, tmp_path, "ftjob-export", merge=True, gguf=True)
    upload.run(asked, inputs | {"exported": tmp_path / "exported"}, tmp_path)
    found = keys(storage, "model/ftjob-export/")
    manifest = Manifest.model_validate_json(found["manifest.json"])
    made = {"merged/config.json", "merged/model.safetensors", "model-f16.gguf"}
    assert made <= {file.path for file in manifest.files} == set(found) - {"manifest.json"}
    assert manifest.export is not None
    assert (manifest.export.dtype, manifest.export.same) == ("float32", 1.0)
    assert manifest.statistics == {"examples": 10, "tokens": 100, "longest": 10}


def test_an_adapter_folder_without_an_adapter_is_not_uploaded(
    storage: Any, tmp_path: Path, inputs: dict[str, Path]
) -> None:
    (inputs["adapter"] / "adapter_model.safetensors").unlink()
    with pytest.raises(StepError, match="holds no adapter"):
        upload.run(step(storage, tmp_path, "ftjob-empty"), inputs, tmp_path)
    assert keys(storage, "model/ftjob-empty/") == {}


def test_a_server_that_comes_back_gets_the_result(storage: Any, tmp_path: Path) -> None:
    tried = threading.Event()

    def work() -> str:
        if not tried.is_set():
            tried.set()
            raise StepError("s3_unavailable")
        return "sent"

    assert upload.patiently(work, patience=10) == "sent"


def test_a_refusal_is_not_tried_again(storage: Any) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise StepError("access_denied")

    with pytest.raises(StepError):
        upload.patiently(work, patience=10)
    assert len(calls) == 1


def test_patience_ends(storage: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    away = s3.client(storage.access.model_copy(update={"endpoint": "http://127.0.0.1:9"}), attempts=1)
    with pytest.raises(StepError) as caught:
        upload.send(away, tmp_path / "file", storage.uri("x"), "0" * 64, patience=0)
    assert caught.value.code.name == "s3_unavailable"
