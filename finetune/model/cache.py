"""The content-addressed cache: bases by commit or fingerprint, datasets by uri and ETag. Folders appear whole, by rename.

`<cache>/models/<revision>/` holds a base's files and what is known of it; `<cache>/sources/<hash>.json` remembers which
revision a source had, so that it need not be read again; `<cache>/uses/` who reads a base. Knows files, no network, no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetune.exit_codes import StepError
from finetune.progress import write_atomic
from finetune.steps import Base, ModelSource

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
WANTED = re.compile(
    r"config\.json|generation_config\.json|.*\.safetensors|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.model|chat_template\.(jinja|json)"
)
"""Files of a base that are taken: configuration, safetensors, tokenizer. Nothing pickled, no code."""
PICKLED = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle|h5|msgpack)")
HEADER_LIMIT = 100 << 20
STALE_SECONDS = 24 * 3600


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: Path) -> str:
    """The revision of a base without a hub commit: sha256 over the sorted names and sha256 values of its wanted files.

    Args:
        folder: A model folder; files that are not a base's (`wanted`) do not count.
    Returns:
        64 hex digits.
    """
    names = wanted([path.name for path in folder.iterdir() if path.is_file()])
    return revision({name: file_sha256(folder / name) for name in names})


def revision(files: Mapping[str, str]) -> str:
    """What `fingerprint` says of a model's folder, of the sha256 of its files alone.

    Args:
        files: Name → sha256 of the folder's files.
    """
    lines = [f"{name}\0{files[name]}\n" for name in wanted(list(files))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def wanted(names: list[str]) -> list[str]:
    """The names among a model folder's files that make the base, sorted.

    A folder may hold the same weights twice (one file, and an original layout beside it): `model.safetensors` or, with an
    index, `model-*.safetensors` win.

    Raises:
        StepError: `unsupported_model`: no safetensors weights (pickled ones are refused), or no config.json.
    """
    taken = sorted(name for name in names if SAFE_NAME.fullmatch(name) and WANTED.fullmatch(name))
    weights = [name for name in taken if name.endswith(".safetensors")]
    if "config.json" not in taken:
        raise StepError("unsupported_model", "There is no config.json: this is no folder of a model.", param="model")
    if not weights:
        pickled = [name for name in names if PICKLED.fullmatch(name)]
        what = f"only pickled weights ({pickled[0]}), which can carry code and are refused" if pickled else "no weights"
        raise StepError("unsupported_model", f"The model has {what}. It needs safetensors.", param="model")
    if "model.safetensors" in weights:
        chosen = {"model.safetensors"}
    elif "model.safetensors.index.json" in taken:
        chosen = {name for name in weights if name.startswith("model-")} or set(weights)
    else:
        chosen = set(weights)
    return [name for name in taken if not name.endswith(".safetensors") or name in chosen]


def count_parameters(folder: Path) -> int:
    """Weights of a base, from the headers of its safetensors files.

    Raises:
        StepError: `unsupported_model`: a file is no safetensors file.
    """
    names = [name for name in wanted([path.name for path in folder.iterdir()]) if name.endswith(".safetensors")]
    return sum(
        math.prod(tensor["shape"])
        for name in names
        for key, tensor in _header(folder / name).items()
        if key != "__metadata__"
    )


def chat_template(folder: Path) -> str | None:
    """The chat template a base brings along; None if it has none."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found = _object(folder / name).get("chat_template")
            if isinstance(found, list):  # several by name
                found = next(
                    (
                        entry.get("template")
                        for entry in found
                        if isinstance(entry, dict) and entry.get("name") == "default"
                    ),
                    None,
                )
            if isinstance(found, str):
                return found
    return None


def describe(model: ModelSource, folder: Path, revision: str) -> Base:
    """base.json of a base that lies in `folder`. The template's sha256 is of the one in force; of nothing if there is none.

    Raises:
        StepError: `unsupported_model`: a file of weights is missing, or is no safetensors file.
    """
    template = model.template if model.template is not None else chat_template(folder) or ""
    sha256 = hashlib.sha256(template.encode()).hexdigest()
    _require_shards(folder)
    parameters = count_parameters(folder)
    return Base(
        id=model.id,
        kind=model.kind,
        location=model.location,
        revision=revision,
        parameters=parameters,
        template=model.template,
        template_sha256=sha256,
    )


def model_folder(cache: Path, revision: str) -> Path:
    """Where the base of a revision lies, or would lie."""
    if not re.fullmatch(r"[0-9a-f]{40,64}", revision):
        raise ValueError(f"{revision!r} is neither a commit nor a sha256")
    return cache / "models" / revision


def find_model(cache: Path, revision: str | None) -> Path | None:
    """The folder of a base that is in the cache; None if it is not, or `revision` is only a branch's name."""
    if revision is None or not re.fullmatch(r"[0-9a-f]{40,64}", revision):
        return None
    folder = model_folder(cache, revision)
    return folder if folder.is_dir() else None


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be filled inside; becomes `target` by rename at the end, and is gone on an error.

    Where `target` is there already by then, it is kept: equal address, equal content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    beside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:16]}."))
    beside.chmod(0o755)
    try:
        yield beside
        try:
            beside.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def locked(cache: Path, key: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the cache's lock for `key`: one process makes a thing, the others wait and find it. Ends with the process.

    Args:
        wait: Wait for it. If not, what is yielded says whether it could be had.
    """
    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{address(key)}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def address(*parts: str | int | None) -> str:
    """A file name for content known by `parts`: 32 hex digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def recall(cache: Path, key: str) -> dict[str, Any]:
    """What was remembered about a source; empty if nothing is."""
    try:
        return _object(cache / "sources" / f"{key}.json")
    except (OSError, ValueError):
        return {}


def remember(cache: Path, key: str, facts: dict[str, Any]) -> None:
    """Remember facts about a source, such as the revision it had."""
    (cache / "sources").mkdir(parents=True, exist_ok=True)
    write_atomic(cache / "sources" / f"{key}.json", json.dumps(facts, sort_keys=True) + "\n")


def adopt(cache: Path, fill: Callable[[Path], None]) -> str:
    """Put a base whose revision is known only once its files are there into the cache.

    Args:
        cache: The cache's folder.
        fill: Writes the files into an empty folder.
    Returns:
        Its fingerprint.
    """
    (cache / "models").mkdir(parents=True, exist_ok=True)
    sweep(cache / "models")
    with tempfile.TemporaryDirectory(dir=cache / "models", prefix=".incoming.") as name:
        folder = Path(name) / "base"
        folder.mkdir()
        fill(folder)
        revision = fingerprint(folder)
        target = model_folder(cache, revision)
        protect(folder)
        if not target.is_dir():
            folder.rename(target)
    return revision


def sweep(folder: Path) -> None:
    """Remove what killed processes left half made in `folder` more than a day ago."""
    for path in folder.glob(".*"):
        with suppress(FileNotFoundError):  # its maker, or another sweep, was quicker
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def protect(folder: Path) -> None:
    """Take the right to write from a folder's files: what was hashed stays so, and every user may read it."""
    for path in folder.iterdir():
        path.chmod(0o444)


def link(source: Path, target: Path) -> None:
    """Have `target` lead to a folder of the cache, replacing an earlier link."""
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve(), target_is_directory=True)


def touch(thing: Path) -> None:
    """Remember that a thing of the cache was used now: what was not for longest is pruned first."""
    with suppress(OSError):  # another user's, or just pruned
        os.utime(thing)


def hold(cache: Path, base: Path, link: Path) -> bool:
    """Keep a base of the cache from being pruned while `link` leads to it.

    Returns:
        Whether it is still there: it may have been pruned a moment ago.
    """
    if base.parent != cache / "models":
        return True
    uses = cache / "uses" / base.name
    uses.mkdir(parents=True, exist_ok=True)
    write_atomic(uses / address(str(link)), f"{link}\n")
    with locked(cache, f"model {base.name}"):
        return base.is_dir()


def holders(cache: Path, revision: str) -> list[Path]:
    """The links that lead to a base of the cache, of those that said so."""
    base, uses = model_folder(cache, revision).resolve(), cache / "uses" / revision
    named = [Path(path.read_text(encoding="utf-8").strip()) for path in uses.glob("*")] if uses.is_dir() else []
    return [link for link in named if link.is_symlink() and link.resolve() == base]


def _require_shards(folder: Path) -> None:
    """Every file that the index of a base's weights names is there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    try:
        shards = set(_object(index)["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        raise StepError("unsupported_model", f"{index.name} is no index of weights.", param="model") from None
    if missing := sorted(str(name) for name in shards if not (folder / str(name)).is_file()):
        raise StepError(
            "unsupported_model", f"The model's weights are not whole: {missing[0]} is missing.", param="model"
        )


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: 8 bytes of length, then JSON (format of the safetensors library)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= HEADER_LIMIT:
            raise StepError("unsupported_model", f"{path.name} is no safetensors file.", param="model")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise StepError("unsupported_model", f"{path.name} is no safetensors file.", param="model") from None
    return header if isinstance(header, dict) else {}


def _object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}
