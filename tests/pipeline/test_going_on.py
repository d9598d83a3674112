"""What a result on S3 is good for afterwards: an adapter is gone on from, a whole model is a base of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import local, s3
from finetune.exit_codes import StepError
from finetune.model import fetch
from finetune.model.cache import revision
from finetune.steps import Manifest, ModelSource
from tests.finetune.train.conftest import QUIET, ROWS, build_base

pytestmark = [pytest.mark.pipeline, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

Run = Callable[..., tuple[str, Manifest]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def run(storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Trains a job with everything before and after it in this process; its prefix on S3 and the manifest there."""
    for name, value in (QUIET | storage.env | {"LLAMAFLOW_CACHE_DIR": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def train(name: str, model: str, **fields: Any) -> tuple[str, Manifest]:
        output = {"path": storage.uri(f"going-on/{tmp_path.name}/{name}/")}
        short = {"n_epochs": 1, "batch_size": 4}
        body = {"model": model, "training_file": "rows.jsonl", "output": output, "hyperparameters": short} | fields
        (tmp_path / f"{name}.json").write_text(json.dumps(body))
        local.run(tmp_path / f"{name}.json", tmp_path / name)
        [found] = [row.uri for row in s3.listing(storage.client, output["path"]) if row.uri.endswith("/manifest.json")]
        return found.removesuffix("manifest.json"), Manifest.model_validate_json(storage.get(found))

    return train


def test_an_adapter_is_gone_on_from_and_named_in_the_manifest(
    run: Run, base: Path, storage: Any, tmp_path: Path
) -> None:
    prefix, first = run("first", str(base), lora={"r": 2})
    assert first.result.parent is None
    _, second = run("second", prefix)
    assert second.result.parent is not None
    assert second.result.parent.uri == f"{prefix}adapter/"
    content = storage.get(f"{prefix}manifest.json")
    assert second.result.parent.manifest_sha256 == hashlib.sha256(content).hexdigest()
    assert (second.base.id, second.base.revision) == (first.base.id, first.base.revision)
    config = json.loads((tmp_path / "second" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 2
    report = json.loads((tmp_path / "second" / "fetch.report.json").read_text())
    name = prefix.rstrip("/").rpartition("/")[2]
    assert report["message"].endswith(f"Training goes on from {name}.")
    assert "s3://" not in (tmp_path / "second" / "adapter" / "README.md").read_text()


def test_another_base_by_the_same_name_is_refused(run: Run, tmp_path: Path) -> None:
    base = build_base(tmp_path / "changing")
    prefix, _ = run("first", str(base))
    build_base(base, intermediate_size=96)
    with pytest.raises(StepError, match=r"has revision \w+, not \w+") as failure:
        run("second", prefix)
    assert failure.value.code.name == "model_not_found"


def test_a_spoilt_adapter_is_refused(run: Run, base: Path, storage: Any) -> None:
    prefix, _ = run("first", str(base))
    key = f"{prefix}adapter/adapter_model.safetensors".removeprefix("s3://llamaflow-data/")
    weights = storage.get(f"{prefix}adapter/adapter_model.safetensors")
    storage.put(key, weights[:-4] + bytes(4))
    with pytest.raises(StepError, match="and the manifest says") as failure:
        run("second", prefix)
    assert failure.value.code.name == "manifest_mismatch"


def test_a_whole_model_is_a_base_of_its_own(run: Run, base: Path, storage: Any, tmp_path: Path) -> None:
    prefix, first = run("first", str(base), technique="full")
    files = {file.path: file.sha256 for file in first.files}
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/README.md"} <= set(files)
    assert not any(name.startswith("adapter/") for name in files)
    card = storage.get(f"{prefix}model/README.md").decode()
    assert "AutoModelForCausalLM.from_pretrained(folder)" in card
    own = revision({name.removeprefix("model/"): sha for name, sha in files.items() if name.startswith("model/")})
    served = ModelSource(id="own", kind="s3", location=f"{prefix}model/", revision=own)
    folder, known, _ = fetch.obtain(served, storage.access, tmp_path / "engine")
    assert known.revision == own
    assert (folder / "model.safetensors").read_bytes() == storage.get(f"{prefix}model/model.safetensors")
    _, second = run("second", prefix)
    assert (second.base.kind, second.base.location, second.base.revision) == ("s3", f"{prefix}model/", own)
    assert second.result.parent is None
