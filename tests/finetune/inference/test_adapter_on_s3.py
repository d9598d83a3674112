"""Adapters from a real S3 server: brought once, refused when an object is not what the manifest says, every failure named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.embedded.s3 import S3Server, start_s3
from app.nextflow import install
from app.settings import Settings
from finetune import s3
from finetune.exit_codes import StepError
from finetune.inference.adapters import obtain
from finetune.inference.request import AdapterSource
from finetune.steps import S3, Base

pytestmark = pytest.mark.db

PREFIX = "s3://llamaflow-data/engine-tests/"
LORA = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj"],
    "bias": "none",
    "lora_dropout": 0.1,
}
WEIGHTS = b"weights of which nobody here reads a byte"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    started = start_s3(tmp_path_factory.mktemp("s3"), install.ensure(Settings().tools))
    yield started
    started.stop()


@pytest.fixture
def access(server: S3Server, tmp_path: Path) -> Callable[..., S3]:
    """How S3 is reached, perhaps with a wrong secret."""

    def make(secret: str = server.secret_key) -> S3:
        file = tmp_path / f"credentials-{secret[:4]}"
        file.write_text(f"AWS_ACCESS_KEY_ID={server.access_key}\nAWS_SECRET_ACCESS_KEY={secret}\n")
        return S3(endpoint=server.endpoint, credentials_file=str(file))

    return make


@pytest.fixture
def put(access: Callable[..., S3]) -> Callable[[str, Path], None]:
    """Store a file below a prefix."""
    return lambda uri, path: s3.put(s3.client(access()), path, uri)


@pytest.fixture
def adapter(
    tmp_path: Path,
    no_base: Any,
    write_manifest: Callable[..., None],
    put: Callable[[str, Path], None],
    request: pytest.FixtureRequest,
) -> AdapterSource:
    """An adapter on S3, in a prefix of the test's own."""
    folder = tmp_path / "result"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(LORA))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(WEIGHTS)
    write_manifest(folder, no_base)
    prefix = f"{PREFIX}{request.node.name}/"
    for path in sorted(folder.rglob("*.*")):
        put(prefix + path.relative_to(folder).as_posix(), path)
    return AdapterSource(id="mine", uri=f"{prefix}adapter/", manifest_uri=f"{prefix}manifest.json")


@pytest.fixture
def take(tmp_path: Path, no_base: Any, access: Callable[..., S3]) -> Callable[..., Any]:
    """Bring an adapter into an empty cache."""
    base = Base(**no_base.source, parameters=1, template_sha256="")
    return lambda source, reached=None: obtain(source, base, reached or access(), tmp_path / "cache", allow_local=False)


def test_an_adapter_is_brought_whole_and_only_what_makes_it_is_taken_over(
    take: Callable[..., Any], adapter: AdapterSource
) -> None:
    taken = take(adapter)
    assert (taken.folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert taken.lora == {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    assert (taken.size, taken.template) == (len(WEIGHTS), None)


def test_an_object_that_changed_is_refused_and_leaves_nothing_in_the_cache(
    take: Callable[..., Any], adapter: AdapterSource, put: Callable[[str, Path], None], tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(WEIGHTS[::-1])
    put(adapter.uri + "adapter_model.safetensors", tmp_path / "other")
    with pytest.raises(StepError, match="sha256") as refused:
        take(adapter)
    assert refused.value.code.name == "manifest_mismatch"
    assert not list((tmp_path / "cache" / "adapters").iterdir())


def test_what_is_cached_serves_while_its_objects_are_gone(
    take: Callable[..., Any], adapter: AdapterSource, access: Callable[..., S3]
) -> None:
    taken = take(adapter)
    bucket, key = s3.split(adapter.uri + "adapter_model.safetensors")
    s3.client(access()).delete_object(Bucket=bucket, Key=key)
    assert take(adapter) == taken


def test_every_failure_of_s3_is_named(
    take: Callable[..., Any], adapter: AdapterSource, access: Callable[..., S3]
) -> None:
    gone = adapter.model_copy(update={"uri": PREFIX + "gone/adapter/", "manifest_uri": PREFIX + "gone/manifest.json"})
    nobody = S3(endpoint="http://127.0.0.1:9", credentials_file=access().credentials_file)
    for source, reached, name in (
        (gone, None, "file_not_found"),
        (adapter, access("wrong"), "access_denied"),
        (adapter, nobody, "s3_unavailable"),
    ):
        with pytest.raises(StepError) as failed:
            take(source, reached)
        assert (failed.value.code.name, failed.value.param) == (name, "model")


def test_the_longest_unused_adapters_go_when_they_are_too_large_together(
    adapter: AdapterSource, no_base: Base, access: Callable[..., S3], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "cache" / "adapters" / "old"
    old.mkdir(parents=True)
    (old / "adapter_model.safetensors").write_bytes(bytes(5000))
    os.utime(old, (1, 1))
    monkeypatch.setenv("LLAMAFLOW_ADAPTER_CACHE_BYTES", "4000")
    files = obtain(adapter, no_base, access(), tmp_path / "cache", allow_local=False)
    assert (old.exists(), files.folder.is_dir()) == (False, True)
