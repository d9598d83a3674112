"""One file out of a folder: zip, tar.gz or tar.zst, the same bytes for the same content.

Times, owners and order are fixed, so that an archive's sha256 says something. Knows nothing of S3.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from finetune.data.unpack import zstd
from finetune.exit_codes import StepError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip can hold."""


def pack(files: list[tuple[str, Path]], kind: str, folder: Path) -> Path:
    """Write `model.<kind>` into `folder`.

    Args:
        files: Name inside the archive, and the file.
        kind: `zip`, `tar.gz` or `tar.zst`.
        folder: Where to write.
    Raises:
        StepError: `unsupported_operation` for another kind.
    """
    if kind not in KINDS:
        message = f"output.archive={kind!r} is not known. Use {', '.join(KINDS)}."
        raise StepError("unsupported_operation", message, param="output.archive")
    target = folder / f"model.{kind}"
    KINDS[kind](sorted(files), target)
    return target


def _zip(files: list[tuple[str, Path]], target: Path) -> None:
    with zipfile.ZipFile(target, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, path in files:
            entry = zipfile.ZipInfo(name, date_time=EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            entry.file_size = path.stat().st_size  # tells zipfile whether 64-bit sizes are needed
            with path.open("rb") as source, archive.open(entry, "w") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _tar_gz(files: list[tuple[str, Path]], target: Path) -> None:
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
    ):
        _tar(files, packed)


def _tar_zst(files: list[tuple[str, Path]], target: Path) -> None:
    with zstd.open(target, "wb") as packed:
        _tar(files, cast("BinaryIO", packed))


def _tar(files: list[tuple[str, Path]], packed: BinaryIO | gzip.GzipFile) -> None:
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as source:
                archive.addfile(entry, source)


KINDS: dict[str, Callable[[list[tuple[str, Path]], Path], None]] = {
    "zip": _zip,
    "tar.gz": _tar_gz,
    "tar.zst": _tar_zst,
}
