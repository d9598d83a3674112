"""Feedback to a `messages` dataset on S3, without what was trained on and what is held out."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from app.adapters import service as adapters
from app.auth import Caller
from app.db import Database
from app.errors import BadRequest, Unavailable
from app.feedback import examples, service
from app.feedback.schemas import Export, ExportCreate
from app.files import service as files
from app.files.storage import Storage, connect
from app.models import Job, new_id
from app.settings import Settings
from finetune.exit_codes import StepError


async def write(database: Database, storage: Storage, settings: Settings, caller: Caller, body: ExportCreate) -> Export:
    """Write the examples of an adapter's feedback.

    Raises:
        BadRequest: `no_examples`, with what was left out; `path_not_allowed`; that the data trained on cannot be read.
        NotFound: `adapter_not_found`.
        Unavailable: `s3_unavailable`.
    """
    async with database.transaction() as db:
        if body.uri is not None:
            if body.uri.endswith("/"):
                raise BadRequest(
                    "uri must name an object, not a prefix: leave the slash out.", code="invalid_value", param="uri"
                )
            await files.allow(db, caller, settings, body.uri, param="uri")
        adapter = await adapters.get(db, caller.project_id, body.adapter)
        version = await adapters.promoted(db, adapter)
        job = await db.get(Job, version.job_id) if version is not None and version.job_id else None
        rows = await service.on(db, caller.project_id, body.adapter)
    found = list(examples.of_feedback(rows, good=body.include_good))
    chosen = await asyncio.to_thread(_chosen, settings, found, job)
    counts = chosen.counts()
    if not chosen.examples:
        raise BadRequest(_nothing(body, len(rows), counts), code="no_examples", param="adapter")
    content = b"".join(example.line() for example in chosen.examples)
    uri, file_id = body.uri, None
    if uri is None:
        file_id = new_id("file-")
        uri = f"{settings.files_prefix.rstrip('/')}/{caller.project_id}/{file_id}"
    etag = await storage.put(uri, content)
    if file_id is not None:
        async with database.transaction() as db:
            await files.add(
                db, caller, filename=f"feedback-{body.adapter}.jsonl", purpose="fine-tune", size=len(content), uri=uri,
                etag=etag, sha256=hashlib.sha256(content).hexdigest(), owned=True, id=file_id,
            )  # fmt: skip
    told: dict[str, Any] = {"examples": counts.pop("new"), **counts}
    return Export(adapter=body.adapter, uri=uri, file_id=file_id, **told)


def _chosen(settings: Settings, found: list[examples.Example], job: Job | None) -> examples.Chosen:
    try:
        return examples.choose(found, *examples.known(connect(settings), job))
    except StepError as problem:
        if problem.code.retry:
            raise Unavailable(problem.message, code=problem.code.name, retry_after=5) from problem
        message = f"What the promoted version was trained on cannot be compared with: {problem.message}"
        raise BadRequest(message, code=problem.code.name, param="adapter") from problem


def _nothing(body: ExportCreate, rows: int, counts: dict[str, int]) -> str:
    if not rows:
        return f"There is no feedback on {body.adapter}: nothing to export."
    left = ", ".join(
        f"{number} {name.replace('_', ' ')}" for name, number in counts.items() if name != "new" and number
    )
    more = "" if body.include_good else " Answers rated good are taken with include_good."
    return f"Of {rows} pieces of feedback on {body.adapter} none is a new example{f' ({left})' if left else ''}.{more}"
