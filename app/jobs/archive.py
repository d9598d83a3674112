"""The logs of a job whose folder was cleared, read from S3, where the housekeeping kept them.

`index.json` below the job's `logs_uri` lists what there is: `{"name", "stage", "key"}` each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.errors import BadRequest
from app.files.storage import Storage, split
from app.jobs.logs import Text
from app.models import Run, Stage

INDEX = "index.json"
INDEX_BYTES = 8 << 20


class Kept:
    """A log kept on S3; it grows no more. One that is gone is empty."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage, self.where = storage, uri
        self._size: int | None = None

    async def size(self) -> int:
        """Bytes it has."""
        if self._size is None:
            try:
                self._size = (await self._storage.head(self.where)).size
            except BadRequest:
                self._size = 0
        return self._size

    async def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on."""
        length = min(length, await self.size() - start)
        return await self._storage.part(self.where, start, length) if length > 0 else b""


class Archive:
    """What was kept of a job. Made by `find`."""

    def __init__(self, found: Mapping[str, Text]) -> None:
        self._found = found

    def of_run(self, run: Run, name: str) -> Text | None:
        """Nextflow's own log of that name."""
        return self._found.get(f"run-{run.attempt}/{name}")

    def of_stage(self, stage: Stage, run: int) -> Text | None:
        """The log of a stage."""
        return self._found.get(f"run-{run}/{stage.process}-{stage.task_hash.replace('/', '-')}/command.log")


async def find(storage: Storage, logs_uri: str) -> Archive:
    """What was kept below `logs_uri`; nothing, if the objects are gone.

    Raises:
        Unavailable: `s3_unavailable`.
    """
    bucket, below = split(logs_uri)
    rows = [(str(row.get("name")), str(row.get("key"))) for row in await _index(storage, f"{logs_uri}{INDEX}")]
    mine = {name: Kept(storage, f"s3://{bucket}/{key}") for name, key in rows if key.startswith(below)}
    return Archive(mine)


async def _index(storage: Storage, uri: str) -> list[dict[str, Any]]:
    try:
        made = json.loads(await storage.part(uri, 0, INDEX_BYTES))
    except (BadRequest, ValueError):
        return []
    return [row for row in made if isinstance(row, dict)] if isinstance(made, list) else []
