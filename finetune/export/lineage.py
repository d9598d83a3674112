"""Whether an adapter in a local folder is one of the base at hand: by the manifest beside it, if there is one.

No torch. The engine, which brings adapters from S3, checks more: finetune/inference/adapters.py.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from finetune.exit_codes import StepError
from finetune.model.cache import count_parameters, file_sha256, fingerprint
from finetune.steps import Manifest


def manifest_of(adapter: Path) -> Manifest | None:
    """The manifest of a downloaded result whose adapter/ this folder is; None if there is none.

    Raises:
        StepError: `manifest_mismatch`: it cannot be read.
    """
    file = adapter.resolve().parent / "manifest.json"
    if not file.is_file():
        return None
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as problem:
        raise _refused(adapter, f"its manifest cannot be read ({problem.errors()[0]['msg']})") from None


def require(adapter: Path, base: Path) -> Manifest | None:
    """Refuse an adapter whose manifest names another base, or other files than those that lie here.

    A base fetched from the hub is known by its commit, which a plain copy of its files does not tell; then the number of
    its weights is compared.

    Args:
        adapter: A PEFT folder.
        base: The base's folder, such as one of the cache.
    Returns:
        The manifest; None if there is none.
    Raises:
        StepError: `manifest_mismatch`.
    """
    manifest = manifest_of(adapter)
    if manifest is None:
        return None
    for file in manifest.files:
        folder, _, name = file.path.rpartition("/")
        if folder == "adapter" and (adapter / name).is_file() and file_sha256(adapter / name) != file.sha256:
            raise _refused(adapter, f"{name} is not the file that its manifest lists")
    told = f"it was trained on {manifest.base.id} at {manifest.base.revision}, and {base} is another base"
    place = base.resolve().name
    if manifest.base.revision != place and manifest.base.revision != fingerprint(base):
        unknown = manifest.base.kind == "hub" and len(place) not in (40, 64)
        if not unknown or manifest.base.parameters != count_parameters(base):
            raise _refused(adapter, told)
    return manifest


def _refused(adapter: Path, why: str) -> StepError:
    return StepError("manifest_mismatch", f"The adapter in {adapter} is refused: {why}.")
