"""Adapters for the engine: brought from S3 into the cache, every byte compared with the manifest, and only plain LoRA taken.

Writes below `<cache>/adapters/<address of manifest and place>/`, by rename; the longest unused go when they are too large
together. Nothing pickled is ever read. No torch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from finetune import environment, s3
from finetune.exit_codes import StepError
from finetune.inference.request import AdapterSource
from finetune.model import cache, prune
from finetune.model.peft_folder import CONFIG, TEMPLATE, VECTORS, WEIGHTS, Imported, lora_fields, vouched
from finetune.steps import S3, Base, Manifest

Client = s3.S3Client | None
"""None for local folders."""


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter.

    Attributes:
        key: Content address: of its manifest and its place in it.
        folder: Its files; never to be written to.
        template: The chat template it was trained with; None for the base's own.
        lora: The fields of adapter_config.json that make it (`peft_folder.LORA_FIELDS`).
        size: Bytes of its weights.
        questions: The vectors of its training questions (finetune.inference.routing); None if it came without.
    """

    key: str
    folder: Path
    template: str | None
    lora: dict[str, Any]
    size: int
    questions: Path | None = None


def obtain(source: AdapterSource, base: Base, access: S3, folder: Path, *, allow_local: bool) -> AdapterFiles:
    """An adapter's files, from the cache or brought into it.

    Args:
        source: Where it lies.
        base: What it is to stand on.
        access: How S3 is reached.
        folder: The cache.
        allow_local: Take `file://` addresses too.
    Raises:
        StepError: `manifest_mismatch`: files, base or the manifest itself are not what they should be;
            `unsupported_model`: it is no plain LoRA; `file_not_found`, `access_denied`, `s3_unavailable`;
            `unsupported_operation`: a local address that is not allowed.
    """
    local = source.uri.startswith("file:") and source.manifest_uri.startswith("file:")
    if local and not allow_local:
        raise StepError(
            "unsupported_operation", "An adapter in a local folder is not taken here: put it on S3.", param="model"
        )
    with nullcontext() if local else s3.opened(access) as client:
        return _found(source, base, folder, client)


def _found(source: AdapterSource, base: Base, folder: Path, client: Client) -> AdapterFiles:
    manifest, sha256 = _manifest(source, client)
    if manifest.base.revision != base.revision:
        raise _mismatch(
            source,
            f"it was trained on {manifest.base.id} at {manifest.base.revision}, not on {base.id} at {base.revision}",
        )
    wanted = _wanted(source, manifest)
    key = cache.address("adapter", sha256, source.uri)
    place = folder / "adapters" / key
    with cache.locked(folder, f"adapter {key}"):
        if not _whole(place, wanted):
            shutil.rmtree(place, ignore_errors=True)
            with cache.making(place) as fresh:
                _bring(source, wanted, fresh, client)
        cache.touch(place)
    prune.prune(folder, ("adapters",), environment.adapter_cache_bytes())
    template = manifest.base.template
    if template is None and (own := place / TEMPLATE).is_file():
        template = own.read_text(encoding="utf-8")
    questions = place / VECTORS if VECTORS in wanted else None
    return AdapterFiles(key, place, template, _lora(source, place / CONFIG), wanted[WEIGHTS].size, questions)


def _manifest(source: AdapterSource, client: Client) -> tuple[Manifest | Imported, str]:
    with tempfile.TemporaryDirectory(prefix="llamaflow-manifest-") as scratch:
        file = Path(scratch) / "manifest.json"
        sha256 = _copy(source.manifest_uri, file, client)
        if source.manifest_sha256 is not None and sha256 != source.manifest_sha256:
            raise _mismatch(source, f"the manifest has the sha256 {sha256}, and {source.manifest_sha256} was recorded")
        try:
            return vouched(file.read_bytes()), sha256
        except ValidationError as problem:
            raise _mismatch(source, f"the manifest cannot be read ({problem.errors()[0]['msg']})") from None


def _wanted(source: AdapterSource, manifest: Manifest | Imported) -> dict[str, Manifest.File]:
    """The files to bring, by name, as the manifest lists them."""
    root = source.manifest_uri.removesuffix("manifest.json")
    if not source.uri.startswith(root):
        raise _mismatch(source, "its manifest lies elsewhere")
    listed = {file.path: file for file in manifest.files}
    below = source.uri.removeprefix(root)
    if missing := [name for name in (CONFIG, WEIGHTS) if below + name not in listed]:
        raise _mismatch(source, f"the manifest lists no {below}{missing[0]}")
    return {name: listed[below + name] for name in (CONFIG, WEIGHTS, TEMPLATE, VECTORS) if below + name in listed}


def _whole(place: Path, wanted: Mapping[str, Manifest.File]) -> bool:
    return all(
        (place / name).is_file() and cache.file_sha256(place / name) == file.sha256 for name, file in wanted.items()
    )


def _bring(source: AdapterSource, wanted: Mapping[str, Manifest.File], folder: Path, client: Client) -> None:
    for name, file in wanted.items():
        sha256 = _copy(source.uri + name, folder / name, client)
        if sha256 != file.sha256:
            raise _mismatch(source, f"{name} has the sha256 {sha256}, and the manifest says {file.sha256}")


def _copy(uri: str, target: Path, client: Client) -> str:
    """Bring one file; its sha256."""
    if client is not None:
        return s3.fetch(client, uri, target, param="model")[0]
    try:
        shutil.copyfile(unquote(urlsplit(uri).path), target)
    except OSError as problem:
        raise StepError("file_not_found", f"{uri} cannot be read: {problem.strerror}.", param="model") from None
    return cache.file_sha256(target)


def _lora(source: AdapterSource, path: Path) -> dict[str, Any]:
    """The fields that make the adapter; anything beyond plain LoRA is refused rather than left out."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise _unusable(source, f"its {CONFIG} is no JSON") from None
    try:
        return lora_fields(config)
    except ValueError as problem:
        raise _unusable(source, str(problem)) from None


def _mismatch(source: AdapterSource, why: str) -> StepError:
    return StepError("manifest_mismatch", f"The adapter {source.id} is refused: {why}.", param="model")


def _unusable(source: AdapterSource, why: str) -> StepError:
    return StepError("unsupported_model", f"The adapter {source.id} cannot be served: {why}.", param="model")
