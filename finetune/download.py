"""DOWNLOAD_DATA: bring a dataset's pinned objects to this machine, unchanged.

Reads download.json; writes data/train/NNNN.*, data/validation/NNNN.*, data/source.json. An object whose ETag or size is not
the pinned one ends the step (`object_changed`). Raw objects are kept in the cache by endpoint, uri and ETag; one that is no
longer what was downloaded is downloaded again.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from finetune import environment, s3
from finetune.exit_codes import StepError
from finetune.model.cache import address, file_sha256, locked, making, recall, remember, touch
from finetune.progress import write_atomic, write_report
from finetune.steps import DownloadStep, Pinned, Source

Split = Literal["train", "validation"]

SUFFIX = re.compile(r"(\.(?:jsonl|json|csv|txt))?(\.(?:gz|zst))?$")
PARAMS: dict[Split, str] = {"train": "training_file", "validation": "validation_file"}
PRIVATE = 0o444  # nobody writes to a file of the cache, not even through a hard link


def run(step: DownloadStep, inputs: dict[str, Path], out: Path) -> None:
    """Download what download.json names.

    Args:
        step: The objects, pinned.
        inputs: None are read.
        out: Gets data/.
    Raises:
        StepError: `file_not_found`, `access_denied`, `object_changed`, `s3_unavailable`.
    """
    data = out / "data"
    shutil.rmtree(data, ignore_errors=True)
    files: list[Source.File] = []
    groups: list[tuple[Split, list[Pinned]]] = [("train", step.training), ("validation", step.validation)]
    for split, objects in groups:
        (data / split).mkdir(parents=True)
        for number, pinned in enumerate(objects, start=1):
            name = f"{split}/{number:04d}{safe_suffix(pinned.uri)}"
            files.append(_bring(step, split, pinned, data, name))
            print(f"{name}: {size_text(files[-1].size)} from {pinned.uri}", flush=True)
    write_atomic(data / "source.json", Source(files=files).text())
    _report(out, files)


def safe_suffix(uri: str) -> str:
    """The endings of a file that may stay in its name; names are never made of what users wrote."""
    found = SUFFIX.search(uri.lower())
    return found[0] if found else ""


def count_examples(path: Path) -> int | None:
    """Non-blank lines of a JSONL file, without parsing it; None if it does not begin like one.

    Args:
        path: Any file. Read in pieces, so a line may be of any length.
    """
    lines, filled, first = 0, False, b""
    with path.open("rb") as file:
        while chunk := file.read(s3.CHUNK):
            first = first or chunk.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if first not in (b"", b"{"):
                return None
            head, *rest = chunk.split(b"\n")
            filled = filled or bool(head.strip())
            for piece in rest:
                lines += filled
                filled = bool(piece.strip())
    return lines + filled if first else None


def size_text(size: int) -> str:
    """Bytes as people write them: 3.1 MB."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def _bring(step: DownloadStep, split: Split, pinned: Pinned, data: Path, name: str) -> Source.File:
    if pinned.uri.startswith("file:///"):
        _copy_local(pinned, data / name, PARAMS[split])
        sha256, etag = file_sha256(data / name), None
    else:
        sha256, etag = _from_s3(step, pinned, data / name, PARAMS[split])
    return Source.File(
        name=name, split=split, uri=pinned.uri, etag=etag, sha256=sha256, size=(data / name).stat().st_size
    )


def _from_s3(step: DownloadStep, pinned: Pinned, target: Path, param: str) -> tuple[str, str]:
    """Put one object at `target`, from the cache if it is there. Returns its sha256 and ETag."""
    with s3.opened(step.s3) as client:
        etag = pinned.etag or s3.head(client, pinned.uri, param=param).etag
        cache = environment.cache_dir(step.cache_dir)
        key = address(client.meta.endpoint_url, pinned.uri, etag)
        kept = cache / "datasets" / key / "object"
        with locked(cache, f"dataset {key}"):
            if not (kept.is_file() and file_sha256(kept) == recall(cache, key).get("sha256")):
                shutil.rmtree(kept.parent, ignore_errors=True)
                with making(kept.parent) as folder:
                    sha256, _ = s3.fetch(
                        client, pinned.uri, folder / "object", etag=etag, size=pinned.size, param=param
                    )
                    (folder / "object").chmod(PRIVATE)
                remember(cache, key, {"sha256": sha256, "uri": pinned.uri, "etag": etag})
            elif pinned.size is not None and kept.stat().st_size != pinned.size:
                raise StepError("object_changed", f"{pinned.uri} changed after the job was checked.", param=param)
            touch(kept.parent)
            _place(kept, target)
            return str(recall(cache, key)["sha256"]), etag


def _copy_local(pinned: Pinned, target: Path, param: str) -> None:
    source = Path(unquote(urlsplit(pinned.uri).path))
    if not source.is_file():
        raise StepError("file_not_found", f"There is no file {source}.", param=param)
    if pinned.size is not None and source.stat().st_size != pinned.size:
        raise StepError("object_changed", f"{source} changed after the job was checked.", param=param)
    shutil.copyfile(source, target)


def _place(kept: Path, target: Path) -> None:
    """A second name for a file of the cache, or a copy where the file system has none."""
    try:
        target.hardlink_to(kept)
    except OSError:
        shutil.copyfile(kept, target)


def _report(out: Path, files: list[Source.File]) -> None:
    counts = [count_examples(out / "data" / file.name) for file in files]
    size = sum(file.size for file in files)
    examples = sum(count for count in counts if count is not None) if None not in counts else None
    what = f"{examples:,} examples" if examples is not None else f"{len(files)} file{'s' if len(files) > 1 else ''}"
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    data = {"examples": examples, "files": len(files), "bytes": size}
    write_report(out, "download", f"Downloaded {what} ({size_text(size)}) from {files[0].uri}{others}.", data)
