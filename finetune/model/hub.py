"""Bases from the Hugging Face hub: a commit is resolved first, then exactly its files are fetched.

Only configuration, safetensors and tokenizer files are asked for. `huggingface_hub` is imported when it is needed; it takes
its address from `HF_ENDPOINT`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune.exit_codes import StepError
from finetune.model.cache import wanted
from finetune.steps import ModelSource


def resolve(model: ModelSource, token: str | None) -> tuple[str, list[str]]:
    """The commit that `model.revision` (None: the main branch) is now, and the files of it to take.

    Raises:
        StepError: `model_not_found`, `model_gated`, `model_unavailable`, `unsupported_model`.
    """
    from huggingface_hub import HfApi

    with errors(model):
        info = HfApi().model_info(model.location, revision=model.revision, token=token or False, timeout=20)
    names = [entry.rfilename for entry in info.siblings or [] if "/" not in entry.rfilename]
    if info.sha is None:
        raise StepError("model_unavailable", f"The hub names no commit for {model.location}.", param="model")
    return info.sha, wanted(names)


def download(model: ModelSource, commit: str, names: list[str], folder: Path, token: str | None) -> None:
    """Write files of a commit into `folder`; what an earlier try left there whole is not fetched again.

    Raises:
        StepError: as `resolve`.
    """
    from huggingface_hub import snapshot_download

    with errors(model):
        snapshot_download(
            model.location,
            revision=commit,
            local_dir=folder,
            allow_patterns=names,
            token=token or False,
            max_workers=4,
        )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the library's own records
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise StepError("model_unavailable", f"The hub did not give {missing[0]} of {model.location}.", param="model")


@contextmanager
def errors(model: ModelSource) -> Iterator[None]:
    """Turn what `huggingface_hub` raises inside into a StepError about `model`."""
    from huggingface_hub import errors as hub

    name = model.location + (f"@{model.revision}" if model.revision else "")
    try:
        yield
    except hub.GatedRepoError as problem:
        message = f"{name} is gated: accept its licence on the hub and set HF_TOKEN for the worker."
        raise StepError("model_gated", message, param="model") from problem
    except hub.RevisionNotFoundError as problem:
        message = f"{model.location} has no revision {model.revision!r} on the hub."
        raise StepError("model_not_found", message, param="model") from problem
    except (hub.RepositoryNotFoundError, hub.DisabledRepoError, hub.HFValidationError) as problem:
        message = f"There is no model {name} on the hub, or it is private and HF_TOKEN does not open it."
        raise StepError("model_not_found", message, param="model") from problem
    except (
        hub.HTTPError,
        hub.HfHubHTTPError,
        hub.OfflineModeIsEnabled,
        hub.LocalEntryNotFoundError,
        OSError,
    ) as problem:
        if getattr(problem, "errno", None) is not None:  # the disk, not the network
            raise
        message = f"{name} could not be fetched from the hub: {type(problem).__name__}: {str(problem).splitlines()[0]}"
        raise StepError("model_unavailable", message, param="model") from problem
