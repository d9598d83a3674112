"""What can be known wrong about a job before it is accepted: paths, files, model, callback target. Costs one look at S3, 3 s at most.

Asks S3 and the name service; writes nothing. What needs the data itself is found by the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import bases, lookup
from app.auth import Caller
from app.db import rows
from app.errors import ApiError, BadRequest, NotFound, TooMany, Unavailable
from app.files import paths
from app.files import service as files
from app.files.storage import Object, Storage
from app.jobs.schemas import JobCreate
from app.models import OPEN
from app.settings import Settings
from app.webhooks import target
from finetune.config import unsupported
from finetune.exit_codes import StepError
from finetune.model import parent
from finetune.model.catalog import Entry
from finetune.steps import ModelSource

S3_SECONDS = 3.0
MANIFEST_BYTES = 16 << 20
LOOKED_AT = 100
"""Objects of a folder looked at before a job is accepted; all of them are before it trains."""

_OPEN_JOBS = f"select count(*) from (select 1 from jobs where api_key_id = %(key)s and {OPEN} limit %(most)s) o"  # noqa: S608

Look = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Checked:
    """What was found on the way: the base, and what the user should be warned of."""

    base: ModelSource
    warnings: list[str]


@dataclass(frozen=True)
class Plain:
    """A job that nothing but the table has to be asked about: its base, and the uploads it trains on."""

    base: ModelSource
    files: list[str]


def limited(body: JobCreate, settings: Settings) -> JobCreate:
    """The request within the limits that the models file has for its base.

    Raises:
        BadRequest: `limit_exceeded`.
    """
    return bases.within_limits(body, bases.entries(settings.models_file))


def plain(caller: Caller, body: JobCreate, settings: Settings) -> Plain | None:
    """What is left to ask about a job with uploads for data, a base that is not on S3, and no callback; None for others.

    None too where something is wrong: `at_once` says what, after it was seen whether the request is an old one.
    """
    named = sorted({name for name in (body.training_file, body.validation_file) if name is not None})
    if body.callback_url is not None or not all(name.startswith("file-") for name in named):
        return None
    if unsupported(body) is not None or paths.jobs_in(body.output.path):
        return None
    try:
        files.allow_prefix(caller, settings, body.output.path, param="output.path")
        known = bases.entries(settings.models_file)
        base = bases.resolve(body.model, known)
    except ApiError:
        return None
    own = not _is_base(body.model, known) and "/" not in base.location  # may be an adapter's name
    return None if base.kind == "s3" or own else Plain(base, named)


async def at_once(
    db: AsyncSession, caller: Caller, body: JobCreate, storage: Storage, settings: Settings, *, created: bool = True
) -> Checked:
    """Check a job as far as it can be done now. created: it is to be; then the caller's key must have room for it.

    Raises:
        BadRequest: The first thing that is wrong.
        TooMany: `too_many_open_jobs`.
        Unavailable: `s3_unavailable`.
    """
    if refused := unsupported(body):
        raise BadRequest(refused[1], code="unsupported_operation", param=refused[0])
    if created:
        await room(db, caller, settings.max_open_jobs)
    allow = partial(files.allow, db, caller, settings)
    await allow(body.output.path, param="output.path")
    known = bases.entries(settings.models_file)
    base = await _own_model(db, caller, body.model, known) or bases.resolve(body.model, known)
    bases.within_limits(body, known)
    looks: list[Look] = []
    earlier: list[ModelSource] = []
    if body.model.startswith("s3://") and base.kind == "s3":
        looks.append(partial(_model_is_there, storage, await allow(base.location, param="model"), known, earlier))
    for param in ("training_file", "validation_file"):
        named: str | None = getattr(body, param)
        if named is None:
            continue
        if named.startswith("file-"):
            file = await files.dataset(db, caller, named, param=param)
            if not file.owned:
                await allow(file.uri, param=param)
        elif named.startswith("s3://"):
            looks.append(partial(_object_is_there, storage, await allow(named, param=param), param))
        else:
            raise BadRequest(
                f"{param} must be the id of a file (file-…) or an S3 address (s3://bucket/key), not {named[:80]!r}",
                code="invalid_value",
                param=param,
            )
    warnings = await _callback(body.callback_url, settings.webhook_allow)
    await _look(looks)
    for found in earlier:
        base = found
        if base.kind == "s3":
            await allow(base.location, param="model")
    if base.parent is not None:
        _can_go_on(body)
    return Checked(base, warnings)


def _is_base(name: str, known: dict[str, Entry]) -> bool:
    return name in known or name.rpartition("@")[0] in known


async def _own_model(db: AsyncSession, caller: Caller, name: str, known: dict[str, Entry]) -> ModelSource | None:
    """What to train on, where one of the project's own models is named: its base, with its adapter to go on from."""
    if _is_base(name, known):
        return None
    try:
        found = await lookup.find(db, caller.project_id, name)
    except NotFound as problem:
        raise BadRequest(problem.message, code=problem.code, param="model") from problem
    return found.base.model_copy(update={"parent": found.adapter}) if found else None


def _can_go_on(body: JobCreate) -> None:
    """Refuse what an adapter cannot be gone on with."""
    if body.technique == "full":
        message = "technique='full' cannot go on from an adapter. Use lora or qlora, or give the base model itself."
        raise BadRequest(message, code="unsupported_operation", param="technique")
    if body.execution.backend == "unsloth":
        message = "execution.backend='unsloth' cannot go on from an adapter. Leave the backend out."
        raise BadRequest(message, code="unsupported_operation", param="execution.backend")


async def room(db: AsyncSession, caller: Caller, most: int) -> None:
    """Whether the caller's key may have one more job that has not ended. Requests at once may each be let in once too often.

    Raises:
        TooMany: `too_many_open_jobs`.
    """
    [(open_jobs,)] = await rows(db, _OPEN_JOBS, {"key": caller.key_id, "most": most})
    if open_jobs >= most:
        raise TooMany(
            f"This API key has {most:,} jobs that have not ended (LLAMAFLOW_MAX_OPEN_JOBS). Wait for some, or cancel them.",
            code="too_many_open_jobs",
            retry_after=30,
        )


async def _callback(url: str | None, allow: list[str]) -> list[str]:
    if url is None:
        return []
    found = await target.check(url, allow)
    if found.addresses:
        return []
    return [
        f"The host of callback_url, {found.host}, does not resolve now; it is tried again when the callback is due."
    ]


async def _look(looks: list[Look]) -> None:
    """Wait for what S3 says, all of it within S3_SECONDS."""
    try:
        async with asyncio.timeout(S3_SECONDS):
            await asyncio.gather(*(look() for look in looks))
    except TimeoutError:
        raise Unavailable(
            f"S3 did not answer within {S3_SECONDS:.0f} s. Try again in a moment.", code="s3_unavailable", retry_after=5
        ) from None


async def _object_is_there(storage: Storage, uri: str, param: str) -> None:
    if not uri.endswith("/"):
        await storage.head(uri, param=param)
        return
    found = await storage.some(uri, limit=LOOKED_AT, param=param)
    if len(found) < LOOKED_AT and not any(paths.of_folder(uri, key) for key in found):
        raise BadRequest(f"There is no object below {uri}.", code="file_not_found", param=param)


async def _model_is_there(storage: Storage, prefix: str, known: dict[str, Entry], earlier: list[ModelSource]) -> None:
    """Look for a model at a prefix, or for an earlier result: what that is trained on goes into `earlier`."""
    if await _is_there(storage, prefix + "config.json"):
        return
    if (manifest := await _is_there(storage, prefix + "manifest.json")) is None:
        hint = ""
        if prefix.endswith("/adapter/") or await _is_there(storage, prefix + "adapter_config.json"):
            hint = " To go on from an adapter give the folder that its manifest.json lies in."
        message = f"There is no model at {prefix}: config.json is not there.{hint}"
        raise BadRequest(message, code="model_not_found", param="model")
    if manifest.size > MANIFEST_BYTES:
        message = f"{manifest.uri} is larger than {MANIFEST_BYTES:,} bytes: it is no manifest of a result."
        raise BadRequest(message, code="manifest_mismatch", param="model")
    try:
        earlier.append(parent.source(prefix, await storage.part(manifest.uri, 0, manifest.size), known))
    except StepError as problem:
        raise BadRequest(problem.message, code=problem.code.name, param="model") from problem


async def _is_there(storage: Storage, uri: str) -> Object | None:
    try:
        return await storage.head(uri, param="model")
    except BadRequest as problem:
        if problem.code != "file_not_found":
            raise
    return None
