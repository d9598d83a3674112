"""FETCH_MODEL: bring the base model into the content-addressed cache, at one exact revision.

Reads fetch.json; writes base (a link into the cache), base.json, parent/ (the adapter to go on from) and compared/ (the
version that a gate compares with). Sources: the hub
at a commit, an S3 prefix, a local folder, or a Python package that carries a GGUF file (converted once, in a process of
its own, because that needs torch). The only step that reaches a hub. The inference engine takes its bases through `obtain` too.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from finetune import environment, s3
from finetune.exit_codes import BY_STATUS, StepError
from finetune.export import llama
from finetune.model import cache, hub, known, parent
from finetune.progress import write_atomic, write_report
from finetune.steps import S3, Base, FetchStep, ModelSource

CONVERTER = 1
"""Raised when `finetune.model.convert` would make other files of the same package."""


def run(step: FetchStep, inputs: dict[str, Path], out: Path) -> None:
    """Fetch the base that fetch.json names.

    Args:
        step: Where it comes from.
        inputs: None are read.
        out: Gets base, base.json, parent/ and compared/.
    Raises:
        StepError: `model_not_found`, `model_gated`, `model_unavailable`, `unsupported_model`, and those of S3;
            `unsupported_operation`: it cannot become the GGUF file that was asked for.
    """
    print(f"Looking for {step.model.id} ({step.model.kind} {step.model.location})", flush=True)
    kept = environment.cache_dir(step.cache_dir)
    while True:
        folder, base, cached = obtain(step.model, step.s3, kept)
        if step.gguf:
            llama.require(folder)
        cache.link(folder, out / "base")
        if cache.hold(kept, folder, (out / "base").absolute()):
            break
    parent.bring(step.model.parent, base, step.s3, kept, out / "parent")
    left_out = _compared(step, base, kept, out / "compared")
    write_atomic(out / "base.json", base.text())
    size = f"{base.parameters / 1e6:,.1f} million parameters, revision {base.revision[:12]}"
    message = f"Base model {base.id} ({size}) {'was in the cache' if cached else 'was fetched'}."
    message += f" Training goes on from {step.model.parent.id}." if step.model.parent else ""
    data = {"parameters": base.parameters, "revision": base.revision, "cached": cached}
    if left_out:
        message, data = f"{message} {left_out}", data | {"warnings": [left_out]}
    write_report(out, "fetch", message, data)


def _compared(step: FetchStep, base: Base, kept: Path, folder: Path) -> str:
    """Bring the version that a gate compares with; one that does not fit this base is left out unless the gate needs it.

    Returns:
        Why it was left out, as a sentence; empty if it was not.
    """
    if step.compare is None:
        parent.bring(None, base, step.s3, kept, folder)
        return ""
    try:
        parent.bring(step.compare.adapter, base, step.s3, kept, folder)
    except StepError as problem:
        if problem.code.retry:
            raise
        if step.compare.needed:
            out = f"evaluation.gate cannot compare with the promoted version: {problem.message} Use better_than: base."
            raise StepError(problem.code.name, out, param="evaluation.gate.better_than") from problem
        parent.bring(None, base, step.s3, kept, folder)
        return f"The promoted version is not compared with: {problem.message}"
    return ""


def obtain(model: ModelSource, access: S3, folder: Path) -> tuple[Path, Base, bool]:
    """A base, from the cache or into it.

    Args:
        model: Where it comes from. A revision is checked when given.
        access: How S3 is reached; its credentials file may carry HF_TOKEN.
        folder: The cache.
    Returns:
        The base's folder (never to be written to), what is known of it, and whether it was there already.
    Raises:
        StepError: as `run`.
    """
    found = cache.find_model(folder, model.revision) if model.kind != "path" else None
    if found is not None and model.revision is not None:
        cache.touch(found)
        return found, cache.describe(model, found, model.revision), True
    source: Callable[[ModelSource, S3, Path], tuple[Path, str, bool]] = {
        "hub": _from_hub,
        "s3": _from_s3,
        "path": _from_path,
        "package": _from_package,
    }[model.kind]
    place, revision, cached = source(model, access, folder)
    if model.kind != "hub" and model.revision is not None and model.revision != revision:
        message = f"{model.id} has revision {revision}, not {model.revision}: its files are others than asked for."
        raise StepError("model_not_found", message, param="model")
    if model.kind != "path":
        cache.touch(place)
    return place, cache.describe(model, place, revision), cached


def at_hand(model: ModelSource, folder: Path) -> Path | None:
    """The folder of a base that can be read without fetching anything; None if it is not here, or was never fetched by this name.

    Args:
        model: Where it comes from.
        folder: The cache.
    """
    if model.kind == "path":
        place = Path(model.location).expanduser()
        return place if (place / "config.json").is_file() else None
    if (found := cache.find_model(folder, model.revision)) is not None:
        return found
    if model.kind == "hub":
        key = cache.address("hub", model.location, model.revision)
    elif model.kind == "package":
        try:
            key = cache.address("package", model.location, importlib.metadata.version(model.location), CONVERTER)
        except importlib.metadata.PackageNotFoundError:
            return None
    else:
        return None
    return cache.find_model(folder, cache.recall(folder, key).get("revision"))


def _from_hub(model: ModelSource, access: S3, folder: Path) -> tuple[Path, str, bool]:
    key = cache.address("hub", model.location, model.revision)
    if environment.hub_offline():
        commit = str(cache.recall(folder, key).get("revision", ""))
        if place := cache.find_model(folder, commit):
            return place, commit, True
        raise StepError(
            "model_unavailable", f"{model.id} is not in the cache and HF_HUB_OFFLINE is set.", param="model"
        )
    token = environment.hub_token(access.credentials_file)
    commit, names = hub.resolve(model, token)
    place = cache.model_folder(folder, commit)
    with cache.locked(folder, f"model {commit}"):
        cached = place.is_dir()
        if not cached:
            incoming = place.with_name(f".hub-{commit}")  # stays after a failure, so that the next try goes on
            incoming.mkdir(parents=True, exist_ok=True)
            hub.download(model, commit, ["config.json"], incoming, token)
            known.require(incoming / "config.json")
            hub.download(model, commit, names, incoming, token)
            cache.protect(incoming)
            incoming.rename(place)
    cache.remember(folder, key, {"revision": commit})
    return place, commit, cached


def _from_s3(model: ModelSource, access: S3, folder: Path) -> tuple[Path, str, bool]:
    with s3.opened(access) as client:
        try:
            objects = {
                row.uri.removeprefix(model.location): row for row in s3.listing(client, model.location, param="model")
            }
        except StepError as problem:
            if problem.code.name == "file_not_found":
                raise StepError("model_not_found", problem.message, param="model") from problem
            raise
        if not objects:
            raise StepError("model_not_found", f"There is nothing below {model.location}.", param="model")
        names = cache.wanted(list(objects))
        key = cache.address(
            "s3", client.meta.endpoint_url, *(f"{objects[name].uri} {objects[name].etag}" for name in names)
        )

        def fill(target: Path) -> None:
            for name in names:
                row = objects[name]
                s3.fetch(client, row.uri, target / name, etag=row.etag, size=row.size, param="model")
                if name == "config.json":  # before the weights, by the order of names
                    known.require(target / name)

        return _once(folder, key, fill)


def _from_path(model: ModelSource, access: S3, folder: Path) -> tuple[Path, str, bool]:
    place = Path(model.location).expanduser().resolve()
    if not place.is_dir():
        raise StepError("model_not_found", f"There is no folder {model.location}.", param="model")
    names = cache.wanted([path.name for path in place.iterdir()])
    known.require(place / "config.json")
    stats = [(name, (place / name).stat()) for name in names]
    key = cache.address("path", str(place), *(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))
    revision = cache.recall(folder, key).get("revision")
    if not isinstance(revision, str):
        revision = cache.fingerprint(place)
        cache.remember(folder, key, {"revision": revision})
        return place, revision, False
    return place, revision, True


def _from_package(model: ModelSource, access: S3, folder: Path) -> tuple[Path, str, bool]:
    try:
        version = importlib.metadata.version(model.location)
    except importlib.metadata.PackageNotFoundError:
        message = f"{model.id} comes from the Python package {model.location}, which is not installed."
        raise StepError("model_not_found", message, param="model") from None
    key = cache.address("package", model.location, version, CONVERTER)

    def fill(target: Path) -> None:
        print(f"Converting {model.location} {version} to safetensors, once", flush=True)
        _convert(model.location, target)

    return _once(folder, key, fill)


def _once(folder: Path, key: str, fill: Callable[[Path], None]) -> tuple[Path, str, bool]:
    """The base a source is known to have, else the one `fill` writes; one process at a time."""
    with cache.locked(folder, f"source {key}"):
        kept = cache.recall(folder, key).get("revision")
        if isinstance(kept, str) and (place := cache.find_model(folder, kept)):
            return place, kept, True
        revision = cache.adopt(folder, fill)
        cache.remember(folder, key, {"revision": revision})
    return cache.model_folder(folder, revision), revision, False


def _convert(package: str, target: Path) -> None:
    """Run `python -m finetune convert`, and pass on how it ended."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "finetune", "convert", "--package", package, "--out", str(target.absolute())]
    with tempfile.TemporaryDirectory(prefix="llamaflow-convert-") as scratch:
        ended = subprocess.run(
            command,
            cwd=scratch,
            env=environment.for_child({"PYTHONPATH": str(root)}),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if ended.returncode == 0:
            return
        left = Path(scratch) / "error.json"
        message = json.loads(left.read_text())["message"] if left.is_file() else f"it ended with {ended.returncode}"
    code = BY_STATUS.get(ended.returncode)
    raise StepError(
        code.name if code else "internal_error", f"{package} could not be converted: {message}", param="model"
    )
