"""What `llamaflow import-openai` does: each file and job of OpenAI's once, in an order that can be cut anywhere and gone on with.

A file is marked when its content is here, a job when all its events are: what is marked is not asked for again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.client import Client
from app.importing.reader import Reader, ReadError

FINAL = {"succeeded", "failed", "cancelled"}
UPLOAD_SECONDS = 600.0


@dataclass
class Brought:
    """How much came, was there already, or could not be had."""

    files: int = 0
    jobs: int = 0
    events: int = 0
    there: int = 0
    failed: list[str] = field(default_factory=list)


def bring(reader: Reader, client: Client, say: Callable[[str], None], *, files: bool, jobs: bool) -> Brought:
    """Bring files and jobs over.

    Args:
        reader: OpenAI.
        client: The service.
        say: Gets a line for each.
        files, jobs: What is wanted.
    Raises:
        ReadError: OpenAI refuses or is away: what came is kept, and the next run goes on.
        ServiceError: The service does.
    """
    known = {row["id"]: row for row in imports(client)}
    taken = {row["file_id"] for row in known.values()}
    done = Brought()
    for file in reader.files() if files else ():
        _file(reader, client, say, file, known.get(file["id"]), done, taken)
    for job in reader.jobs() if jobs else ():
        _job(reader, client, say, job, known.get(job["id"]), done)
    return done


def imports(client: Client, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Everything that was imported."""
    params: dict[str, Any] = {"limit": 100} | ({"kind": kind} if kind else {})
    while True:
        page = client.call("GET", "/imports", params=params)
        yield from page["data"]
        if not page["has_more"]:
            return
        params["after"] = page["last_id"]


def _file(
    reader: Reader,
    client: Client,
    say: Callable[[str], None],
    file: dict[str, Any],
    known: Any,
    done: Brought,
    taken: set[str | None],
) -> None:
    if known is not None and known["complete"]:
        done.there += 1
        return
    body = {"id": file["id"], "kind": "file", "object": file}
    made = _uploaded_before(client, file, known, taken)
    if made is None:
        client.call("POST", "/imports", json=body)
        try:
            made = _copy(reader, client, file)
        except ReadError as problem:
            if problem.status in (None, 401, 429):
                raise
            done.failed.append(str(problem))
            say(f"{file['id']}  {file.get('filename', '')}: its content is not given out")
            return
    client.call("POST", "/imports", json={**body, "file_id": made, "complete": True})
    taken.add(made)
    done.files += 1
    say(f"{file['id']}  {file.get('filename', '')} → {made}")


def _uploaded_before(client: Client, file: dict[str, Any], known: Any, taken: set[str | None]) -> str | None:
    """The file here that an earlier run uploaded and was cut before it could say so."""
    if known is None:
        return None
    for row in client.call("GET", "/files", params={"purpose": file["purpose"], "order": "desc"})["data"]:
        same = (row["filename"], row["bytes"]) == (_name(file), file.get("bytes"))
        if same and row["id"] not in taken and row["created_at"] >= known["created_at"]:
            return str(row["id"])
    return None


def _copy(reader: Reader, client: Client, file: dict[str, Any]) -> str:
    """Download a file and upload it here; its id here."""
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / "content"
        reader.download(file, content)
        with content.open("rb") as opened:
            made = client.call(
                "POST",
                "/files",
                files={"file": (_name(file), opened)},
                data={"purpose": file["purpose"]},
                timeout=UPLOAD_SECONDS,
            )
    return str(made["id"])


def _name(file: dict[str, Any]) -> str:
    return str(file.get("filename") or file["id"])


def _job(
    reader: Reader, client: Client, say: Callable[[str], None], job: dict[str, Any], known: Any, done: Brought
) -> None:
    if known is not None and known["complete"]:
        done.there += 1
        return
    body = {"id": job["id"], "kind": "job", "object": job}
    client.call("POST", "/imports", json=body)
    kept = 0
    for events in reader.events(job["id"]):
        kept = client.call("POST", f"/imports/{job['id']}/events", json={"events": events})["kept"]
    checkpoints = reader.checkpoints(job["id"])
    client.call("POST", "/imports", json={**body, "checkpoints": checkpoints, "complete": job.get("status") in FINAL})
    done.jobs += 1
    done.events += kept
    say(f"{job['id']}  {job.get('status')}  {job.get('fine_tuned_model') or job.get('model')}  {kept} events")


def listing(reader: Reader) -> Iterator[str]:
    """What there is to bring, a line each; nothing is written."""
    for file in reader.files():
        yield f"{file['id']}  {file.get('purpose')}  {file.get('bytes', 0):,} bytes  {file.get('filename', '')}"
    for job in reader.jobs():
        yield f"{job['id']}  {job.get('status')}  {job.get('model')}  {job.get('fine_tuned_model') or ''}".rstrip()
