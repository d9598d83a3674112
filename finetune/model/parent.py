"""The adapter a training goes on from: found by its manifest, and brought beside the base, every byte compared. No torch.

`parent/` is there in any case, for a pipeline hands on what it was told of: parent.json alone says that there is none.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from finetune.exit_codes import StepError
from finetune.inference import adapters
from finetune.inference.request import AdapterSource
from finetune.model.catalog import Entry, resolve
from finetune.model.peft_folder import vouched
from finetune.model.product import ADAPTER, MODEL
from finetune.progress import write_atomic
from finetune.steps import S3, Base, ModelSource, Parent


def source(prefix: str, content: bytes, entries: Mapping[str, Entry], *, allow_path: bool = False) -> ModelSource:
    """What to train on, where a job names the prefix of an earlier result as its model.

    The base is looked up by its name as any other is: a manifest cannot lead to a place that a job could not name.

    Args:
        prefix: S3 prefix with a slash at its end, as the job gave it.
        content: Of its manifest.json.
        entries: Of the models file.
        allow_path: See `catalog.resolve`.
    Returns:
        The adapter's base at the manifest's revision, with the adapter as its parent; of a whole model, the model itself.
    Raises:
        StepError: `manifest_mismatch`: it is no manifest; `model_not_found`: the base has no name here.
    """
    try:
        manifest = vouched(content)
    except ValidationError as problem:
        told = f"{prefix}manifest.json is no manifest ({problem.errors()[0]['msg']})."
        raise StepError("manifest_mismatch", told, param="model") from None
    if any(file.path == f"{MODEL}config.json" for file in manifest.files):
        return ModelSource(id=prefix, kind="s3", location=prefix + MODEL)
    base = resolve(manifest.base.id, entries, allow_path=allow_path)
    parent = Parent(
        id=prefix.rstrip("/").rpartition("/")[2],  # a card names it, and no address stands in a card
        uri=prefix + ADAPTER,
        manifest_uri=f"{prefix}manifest.json",
        manifest_sha256=hashlib.sha256(content).hexdigest(),
    )
    pinned = {"revision": manifest.base.revision, "template": manifest.base.template, "parent": parent}
    return base.model_copy(update=pinned)


def bring(parent: Parent | None, base: Base, access: S3, kept: Path, folder: Path) -> None:
    """Fill `folder`, which is made anew: the adapter's files and parent.json.

    Args:
        parent: None for a training that begins at the base.
        base: What was fetched.
        access: How S3 is reached.
        kept: The cache.
        folder: The step's parent/.
    Raises:
        StepError: `manifest_mismatch`: the adapter is of another base or revision, or not what its manifest says;
            `unsupported_model`: it is no plain LoRA; those of S3.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if parent is not None:
        files = adapters.obtain(AdapterSource(**parent.model_dump()), base, access, kept, allow_local=False)
        for path in files.folder.iterdir():
            shutil.copyfile(path, folder / path.name)
    write_atomic(folder / "parent.json", parent.text() if parent is not None else "{}\n")
