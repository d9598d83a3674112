"""Adapters for vLLM: brought from S3 into a folder that its servers see, every byte compared with the manifest.

One folder an adapter, named by its content, appearing whole by a rename; the longest unused go when they are too many.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from app.errors import Conflict
from app.files.storage import Storage
from app.inference.engines import Served
from finetune.model.peft_folder import CONFIG, TEMPLATE, WEIGHTS, vouched
from finetune.steps import Manifest

PREFIX = "lf-"
MANIFEST_BYTES = 16 << 20


class Adapters:
    """The folder.

    Args:
        storage: Where adapters come from.
        folder: As this service sees it.
        seen_at: As vLLM's servers see it.
        most: Adapters kept in it.
    """

    def __init__(self, storage: Storage, folder: Path, seen_at: str, *, most: int) -> None:
        self._storage, self._folder, self.seen_at, self._most = storage, folder, seen_at, most
        self._bringing: dict[str, asyncio.Lock] = {}

    def is_ours(self, name: str) -> bool:
        """Whether an adapter in a server's memory was put there by this service."""
        return name.startswith(PREFIX)

    async def bring(self, served: Served) -> str:
        """Have an adapter in the folder; its name there, by which servers load it.

        Raises:
            Conflict: `manifest_mismatch`: manifest, base or files are not what they should be.
            BadRequest, Unavailable: It cannot be read from S3.
        """
        source = served.adapter or {}
        key = f"{source['uri']} {source.get('manifest_sha256')} {served.base.revision}"
        name = PREFIX + hashlib.sha256(key.encode()).hexdigest()[:24]
        async with self._bringing.setdefault(name, asyncio.Lock()):
            place = self._folder / name
            if place.is_dir():
                os.utime(place)
                return name
            await self._copy(served, source, place)
        self._bringing.pop(name, None)
        await asyncio.to_thread(self._prune, name)
        return name

    def close(self) -> None:
        """Give the storage's threads back."""
        self._storage.close()

    async def _copy(self, served: Served, source: dict[str, str], place: Path) -> None:
        found, chunks = await self._storage.read(source["manifest_uri"])
        if found.size > MANIFEST_BYTES:
            raise _mismatch(source, "its manifest is too large")
        content = b"".join([chunk async for chunk in chunks])
        recorded = source.get("manifest_sha256")
        if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:
            raise _mismatch(source, "its manifest is not the one that was recorded")
        try:
            manifest = vouched(content)
        except ValidationError:
            raise _mismatch(source, "its manifest cannot be read") from None
        if served.base.revision is not None and manifest.base.revision != served.base.revision:
            raise _mismatch(source, f"it was trained on {manifest.base.id} at {manifest.base.revision}")
        below = source["uri"].removeprefix(source["manifest_uri"].removesuffix("manifest.json"))
        listed = {file.path: file for file in manifest.files}
        if missing := [file for file in (CONFIG, WEIGHTS) if below + file not in listed]:
            raise _mismatch(source, f"the manifest lists no {below}{missing[0]}")
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bringing-", dir=self._folder) as scratch:
            fresh = Path(scratch) / "adapter"
            fresh.mkdir()
            for file in (CONFIG, WEIGHTS, TEMPLATE):
                if below + file in listed:
                    await self._fetch(source, listed[below + file], fresh / file)
            fresh.rename(place)

    async def _fetch(self, source: dict[str, str], file: Manifest.File, target: Path) -> None:
        _, chunks = await self._storage.read(source["uri"] + target.name)
        digest = hashlib.sha256()
        with target.open("wb") as out:
            async for chunk in chunks:
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise _mismatch(
                source, f"{target.name} has the sha256 {digest.hexdigest()}, and the manifest says {file.sha256}"
            )

    def _prune(self, keep: str) -> None:
        there = sorted(self._folder.glob(f"{PREFIX}*"), key=lambda path: path.stat().st_mtime)
        for path in [path for path in there if path.name != keep][: max(0, len(there) - self._most)]:
            shutil.rmtree(path, ignore_errors=True)


def _mismatch(source: dict[str, str], why: str) -> Conflict:
    return Conflict(f"The adapter {source.get('id')} is refused: {why}.", code="manifest_mismatch", param="model")
