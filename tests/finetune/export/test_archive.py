"""Archives of the adapter: readable by the usual tools, the same bytes for the same content."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from finetune.data import unpack
from finetune.exit_codes import StepError
from finetune.export.archive import pack

pytestmark = pytest.mark.unit


def files(folder: Path) -> list[tuple[str, Path]]:
    folder.mkdir(exist_ok=True)
    for name in ("b.json", "a.safetensors"):
        (folder / name).write_bytes(name.encode() * 1000)
    return [(name, folder / name) for name in ("b.json", "a.safetensors")]


def read(path: Path) -> dict[str, bytes]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    if path.suffix == ".zst":
        path = path.with_suffix("")
        path.write_bytes(unpack.zstd.decompress(path.with_suffix(".tar.zst").read_bytes()))
    with tarfile.open(path) as packed:
        return {entry.name: found.read() for entry in packed if (found := packed.extractfile(entry))}


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.zst"])
def test_an_archive_holds_every_file_and_is_reproducible(tmp_path: Path, kind: str) -> None:
    given = files(tmp_path / "adapter")
    first = pack(given, kind, tmp_path)
    content = first.read_bytes()
    assert read(first) == {name: path.read_bytes() for name, path in given}
    os.utime(given[0][1], (1_700_000_000, 1_700_000_000))
    assert pack(list(reversed(given)), kind, tmp_path).read_bytes() == content


def test_an_archive_that_cannot_be_written_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"Use zip, tar\.gz") as caught:
        pack(files(tmp_path / "adapter"), "rar", tmp_path)
    assert caught.value.code.name == "unsupported_operation"
