"""What a step leaves behind while it works: progress.jsonl, reports, and files that are either whole or not there.

Written by the trainer and the other steps, read by the service's worker. Imports the standard library only.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

READ_LIMIT = 4 * 1024 * 1024
"""Bytes `read_lines` takes at most in one call; what is left comes with the next."""
LINE_LIMIT = 1 << 20
"""Bytes of a line; none of ours comes near."""
PASSED_OVER = {"event": "notice", "message": "A line of progress.jsonl over 1 MiB was passed over"}


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never half.

    Args:
        path: The file. Its folder must exist.
        content: Text is written as UTF-8.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append(path: Path, event: str, /, **fields: Any) -> None:
    """Append one line `{"event": …, "time": unix seconds, …}` in one write, so that a reader sees it whole soon or not yet.

    A half line left by a killed writer is closed first. NaN and infinities become null: they are no JSON.

    Args:
        path: A progress.jsonl; made if it is not there.
        event: `start`, `step`, `evaluation`, `checkpoint` or `end`.
        fields: The rest of the line, JSON values.
    """
    line = json.dumps(_finite({"event": event, "time": time.time(), **fields}), ensure_ascii=False, allow_nan=False)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = memoryview((("\n" if torn else "") + line + "\n").encode())
        while data:
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines that stand in `path` from `offset` on.

    A last line without its newline is left for the next call; a line that is no JSON object is passed over. In place of one
    over LINE_LIMIT bytes stands a notice.

    Args:
        path: A progress.jsonl; need not be there yet.
        offset: Bytes already read: 0, or what the last call returned.
    Returns:
        The lines and the offset to go on from. At most `READ_LIMIT` bytes are read: call again until the offset stands still.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, offset - 1))
            before, data = file.read(min(1, offset)), file.read(READ_LIMIT)
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    if end == 0:
        return [], offset + (len(data) if len(data) == READ_LIMIT else 0)  # in the middle of a line without end
    lines = [_object(line) if len(line) <= LINE_LIMIT else PASSED_OVER for line in data[: end - 1].split(b"\n")]
    if before not in (b"", b"\n"):
        lines[0] = PASSED_OVER  # the end of such a line
    return [line for line in lines if line is not None], offset + end


def write_report(out: Path, step: str, message: str, data: dict[str, Any]) -> None:
    """Say how a step ended well: print the sentence, and leave it with its numbers in `<step>.report.json`.

    Args:
        out: The step's folder.
        step: Its name, such as `prepare`.
        message: A sentence a user reads; it becomes an event of the job.
        data: Numbers behind the sentence.
    """
    print(message, flush=True)
    write_atomic(
        out / f"{step}.report.json",
        json.dumps({"message": message, "data": _finite(data)}, ensure_ascii=False, sort_keys=True) + "\n",
    )


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
