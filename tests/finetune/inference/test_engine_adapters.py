"""What the engine takes for an adapter: files that are what their manifest says, on the base it names, plain LoRA in safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import ConflictError

from finetune.exit_codes import StepError
from finetune.inference.adapters import obtain
from finetune.inference.request import AdapterSource
from finetune.model.cache import describe, file_sha256
from finetune.steps import S3, ModelSource

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]


def source(prefix: Path, **more: Any) -> AdapterSource:
    """The adapter of a folder."""
    return AdapterSource(
        id="mine", uri=f"{prefix.as_uri()}/adapter/", manifest_uri=f"{prefix.as_uri()}/manifest.json", **more
    )


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    """An adapter to spoil."""
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


@pytest.fixture
def take(base: Any, tmp_path: Path) -> Callable[..., Any]:
    """Bring an adapter into an empty cache."""

    def call(given: AdapterSource, *, on: Any = base, allow_local: bool = True) -> Any:
        known = describe(ModelSource(**on.source), on.folder, on.revision)
        return obtain(given, known, S3(), tmp_path / "cache", allow_local=allow_local)

    return call


def relist(prefix: Path, name: str) -> None:
    """Make the manifest agree with a changed file."""
    manifest = json.loads((prefix / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == f"adapter/{name}":
            file["sha256"] = file_sha256(prefix / "adapter" / name)
    (prefix / "manifest.json").write_text(json.dumps(manifest))


def flip(path: Path) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_corrupt_adapter_is_refused_by_the_live_engine(live: Any, copy: Path) -> None:
    flip(copy / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ConflictError) as refused:
        live.ask(copy)
    assert (refused.value.code, refused.value.param) == ("manifest_mismatch", "model")
    assert "adapter_model.safetensors" in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_file_spoiled_in_the_cache_is_brought_again(take: Callable[..., Any], adapter: Path) -> None:
    taken = take(source(adapter))
    weights = taken.folder / "adapter_model.safetensors"
    weights.chmod(0o644)
    flip(weights)
    again = take(source(adapter))
    assert again == taken
    assert file_sha256(weights) == file_sha256(adapter / "adapter" / "adapter_model.safetensors")


def test_an_adapter_of_another_base_is_refused(take: Callable[..., Any], adapter: Path, other_base: Any) -> None:
    with pytest.raises(StepError, match="was trained on tiny at") as refused:
        take(source(adapter), on=other_base)
    assert refused.value.code.name == "manifest_mismatch"


def test_a_manifest_other_than_the_recorded_one_is_refused(take: Callable[..., Any], adapter: Path) -> None:
    assert take(source(adapter, manifest_sha256=file_sha256(adapter / "manifest.json")))
    with pytest.raises(StepError, match="was recorded"):
        take(source(adapter, manifest_sha256="0" * 64))


def test_pickled_weights_are_never_taken(take: Callable[..., Any], copy: Path) -> None:
    (copy / "adapter" / "adapter_model.safetensors").rename(copy / "adapter" / "adapter_model.bin")
    manifest = (copy / "manifest.json").read_text().replace("adapter_model.safetensors", "adapter_model.bin")
    (copy / "manifest.json").write_text(manifest)
    with pytest.raises(StepError, match=r"lists no adapter/adapter_model\.safetensors"):
        take(source(copy))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("peft_type", "IA3", "no LoRA"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("megatron_config", {"a": 1}, "megatron_config"),
        ("bias", "all", "bias"),
        ("target_modules", "(a+)+$", "target_modules"),
    ],
)
def test_more_than_plain_lora_is_refused(
    take: Callable[..., Any], copy: Path, field: str, value: Any, said: str
) -> None:
    path = copy / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    relist(copy, path.name)
    with pytest.raises(StepError, match=said) as refused:
        take(source(copy))
    assert refused.value.code.name == "unsupported_model"


def test_local_folders_are_refused_unless_allowed(take: Callable[..., Any], adapter: Path) -> None:
    with pytest.raises(StepError) as refused:
        take(source(adapter), allow_local=False)
    assert refused.value.code.name == "unsupported_operation"


def test_an_adapter_outside_its_manifests_folder_is_refused(
    take: Callable[..., Any], adapter: Path, copy: Path
) -> None:
    strange = source(adapter).model_copy(update={"manifest_uri": f"{copy.as_uri()}/manifest.json"})
    with pytest.raises(StepError, match="lies elsewhere"):
        take(strange)
