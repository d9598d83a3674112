"""A PEFT adapter made elsewhere, as a new version of a name: looked at, copied to where it cannot change, and vouched for by a manifest.

Three files are taken, of bounded sizes: adapter_config.json, adapter_model.safetensors (its header is read and compared first,
by ranged requests) and chat_template.jinja. Nothing pickled is read. What lies on S3 is read in pieces, in the storage's threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import bases, pointer, promotions, service
from app.adapters.history import Actor
from app.adapters.schemas import AdapterImport
from app.auth import Caller
from app.db import Database
from app.errors import ApiError, BadRequest, Unavailable
from app.files import service as files
from app.files.storage import Object, Storage
from app.files.upload import Sink
from app.models import Adapter, AdapterVersion, new_id
from app.settings import Settings
from finetune.config import nearest
from finetune.model.catalog import Entry
from finetune.model.peft_folder import (
    CONFIG,
    LENGTH_BYTES,
    TEMPLATE,
    WEIGHTS,
    Imported,
    check_weights,
    header_length,
    lora_fields,
)
from finetune.steps import Manifest, ModelSource

SECONDS = 300.0
LIMITS = {CONFIG: 1 << 20, TEMPLATE: 1 << 20, WEIGHTS: 4 << 30}
"""Bytes that are taken of each."""
COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
"""A hub commit, or the sha256 that names the files of other bases."""

log = structlog.get_logger("adapters")


@dataclass(frozen=True)
class Found:
    """A folder that was looked at: its objects by file name, and what its configuration says."""

    source: str
    objects: dict[str, Object]
    config: dict[str, Any]
    lora: dict[str, Any]


async def bring(
    database: Database, storage: Storage, settings: Settings, caller: Caller, body: AdapterImport
) -> tuple[Adapter, AdapterVersion]:
    """Import an adapter.

    Returns:
        The adapter, and the version that was made.
    Raises:
        BadRequest: `path_not_allowed`, `file_not_found`, `invalid_adapter`, `model_not_found`, `revision_not_pinned`, `object_changed`.
        Unavailable: `s3_unavailable`, also when it takes longer than SECONDS.
    """
    addresses = await _addresses(database, settings, caller, body)
    version_id = new_id("adv_")
    prefix = f"{pointer.home(settings, caller.project_id, body.name)}{version_id}/"
    try:
        async with asyncio.timeout(SECONDS):
            found = await _look(storage, addresses, body)
            base = await _base(database, settings, caller, body.base, found.config)
            sha256 = await _copy_all(storage, found, base, prefix)
        async with database.transaction() as db:
            made = await _register(db, caller, body, version_id, base, prefix, sha256, found.source)
    except BaseException as problem:
        with suppress(ApiError):
            await asyncio.shield(storage.clear(prefix))
        if isinstance(problem, TimeoutError):
            message = f"The adapter could not be read from S3 within {SECONDS:.0f} s. Try again."
            raise Unavailable(message, code="s3_unavailable", retry_after=30) from problem
        raise
    if body.promote:
        await pointer.write(database, settings, caller.project_id, body.name)
    return made


async def _addresses(
    database: Database, settings: Settings, caller: Caller, body: AdapterImport
) -> tuple[str, dict[str, str]]:
    """Where the adapter comes from, as it is told later, and the address of each file."""
    async with database.transaction() as db:
        if body.files is None:
            folder = str(body.uri).rstrip("/") + "/"
            await files.allow(db, caller, settings, folder, param="uri")
            return folder, {name: folder + name for name in LIMITS}
        named = {CONFIG: body.files.config, WEIGHTS: body.files.weights, TEMPLATE: body.files.template}
        addresses = {}
        for (name, file_id), field in zip(named.items(), ("config", "weights", "template"), strict=True):
            if file_id is not None:
                param = f"files.{field}"
                file = await files.dataset(db, caller, file_id, param=param)
                if not file.owned:
                    await files.allow(db, caller, settings, file.uri, param=param)
                addresses[name] = file.uri
        return "upload", addresses


async def _look(storage: Storage, addresses: tuple[str, dict[str, str]], body: AdapterImport) -> Found:
    """Everything that can be known wrong before a byte of the weights is read."""
    param = "uri" if body.files is None else "files"
    source, places = addresses
    objects: dict[str, Object] = {}
    for name, uri in places.items():
        try:
            objects[name] = await storage.head(uri, param=param)
        except BadRequest as problem:
            if problem.code != "file_not_found" or name != TEMPLATE:
                raise await _not_there(storage, source, name, problem, param) from problem
    for name, found in objects.items():
        if not 0 < found.size <= LIMITS[name]:
            raise _refused(f"{name} has {found.size:,} bytes; 1 to {LIMITS[name]:,} are taken", param)
    try:
        config = json.loads(await storage.part(objects[CONFIG].uri, 0, objects[CONFIG].size))
    except (ValueError, RecursionError):
        raise _refused(f"{CONFIG} is no JSON", param) from None
    weights = objects[WEIGHTS]
    try:
        lora = lora_fields(config)
        first = await storage.part(weights.uri, 0, min(LENGTH_BYTES, weights.size))
        length = header_length(first, weights.size)
        check_weights(await storage.part(weights.uri, LENGTH_BYTES, length), weights.size, lora)
    except ValueError as problem:
        raise _refused(str(problem), param) from None
    return Found(source, objects, config, lora)


async def _not_there(storage: Storage, folder: str, name: str, problem: BadRequest, param: str) -> BadRequest:
    """What is said of a missing file: what lies there instead."""
    if problem.code != "file_not_found" or not folder.endswith("/"):
        return problem
    keys = await storage.some(folder, limit=100, param=param)
    names = {key.removeprefix(folder.partition("://")[2].partition("/")[2]) for key in keys}
    if name == WEIGHTS and "adapter_model.bin" in names:
        return _refused("adapter_model.bin is a pickle, which is never read. Save it with safetensors", param)
    hint = f" It lies in {folder}adapter/: give that folder." if f"adapter/{name}" in names else ""
    return BadRequest(f"There is no {name} in {folder}.{hint}", code="file_not_found", param=param)


async def _base(
    database: Database, settings: Settings, caller: Caller, asked: str | None, config: dict[str, Any]
) -> ModelSource:
    """The base of an imported adapter: named in the models file, its revision pinned."""
    known = bases.entries(settings.models_file)
    said = str(config.get("base_model_name_or_path") or "")
    entry, at = _entry(asked if asked is not None else said, known)
    if entry is None:
        raise _no_base(asked, said, known)
    told = _entry(said, known)[0]
    if told is not None and told.name != entry.name:
        message = f"{CONFIG} says that the adapter is of {told.name}, not of {entry.name}."
        raise BadRequest(message, code="model_not_found", param="base")
    async with database.transaction() as db:
        pinned = await _pinned(db, caller, entry.name)
    for revision in (at, config.get("revision"), entry.revision, pinned):
        if isinstance(revision, str) and COMMIT.fullmatch(revision):
            return entry.as_source(revision)
        if revision is at and at is not None:
            break
    message = (
        f"The revision of {entry.name} is not known, or no commit: say which one the adapter was trained on, as "
        f"base: '{entry.name}@<commit>' (for a base that is not of the hub: the sha256 that a job on it shows as its base's revision)."
    )
    raise BadRequest(message, code="revision_not_pinned", param="base")


def _entry(name: str, known: dict[str, Entry]) -> tuple[Entry | None, str | None]:
    """The entry of the models file that a name means, and the revision behind an @."""
    for wanted, revision in ((name, None), (name.rpartition("@")[0], name.rpartition("@")[2])):
        for entry in known.values():
            if wanted and wanted in (entry.name, entry.location):
                return entry, revision
    return None, None


def _no_base(asked: str | None, said: str, known: dict[str, Entry]) -> BadRequest:
    given = asked if asked is not None else said
    near = nearest(given, list(known))
    hint = f"did you mean {near!r}?" if near else f"those are {', '.join(sorted(known))}."
    whose = "base" if asked is not None else f"{CONFIG}'s base_model_name_or_path"
    message = f"{whose} is {given[:200]!r}, which is no name of the models file; {hint} Give it as base."
    return BadRequest(message, code="model_not_found", param="base")


async def _pinned(db: AsyncSession, caller: Caller, base: str) -> str | None:
    """The revision of the project's newest version on a base."""
    mine = (AdapterVersion.project_id == caller.project_id, AdapterVersion.base["id"].astext == base)
    query = select(AdapterVersion.base["revision"].astext).where(*mine)
    return (await db.execute(query.order_by(AdapterVersion.created_at.desc()).limit(1))).scalar_one_or_none()


async def _copy_all(storage: Storage, found: Found, base: ModelSource, prefix: str) -> str:
    """Copy the files and write the manifest, last; its sha256."""
    copied = []
    for name, source in sorted(found.objects.items()):
        sha256 = await _copy(storage, source, f"{prefix}adapter/{name}")
        copied.append(Manifest.File(path=f"adapter/{name}", sha256=sha256, size=source.size))
    manifest = Imported(created_at=int(time.time()), base=base, source=found.source, lora=found.lora, files=copied)
    content = manifest.text().encode()
    await storage.put(f"{prefix}manifest.json", content)
    return hashlib.sha256(content).hexdigest()


async def _copy(storage: Storage, source: Object, target: str) -> str:
    """Copy one object piece by piece; the sha256 of what was written."""
    found, chunks = await storage.read(source.uri)
    if (found.etag, found.size) != (source.etag, source.size):
        raise BadRequest(f"{source.uri} changed while it was read. Try again.", code="object_changed")
    async with Sink(storage, target, source.size) as sink:
        async for chunk in chunks:
            await sink.take(bytearray(chunk))
        await sink.finish()
    return sink.digest.hexdigest()


async def _register(
    db: AsyncSession,
    caller: Caller,
    body: AdapterImport,
    version_id: str,
    base: ModelSource,
    prefix: str,
    manifest_sha256: str,
    source: str,
) -> tuple[Adapter, AdapterVersion]:
    adapter = await service.made(db, caller.project_id, body.name)
    adapter.last_version += 1
    if body.description is not None:
        adapter.description = body.description
    version = AdapterVersion(
        id=version_id, project_id=caller.project_id, adapter_id=adapter.id, version=adapter.last_version,
        model=f"ft:{base.id}:{caller.project_name}:{body.name}:{version_id[-8:]}", base=base.model_dump(mode="json"),
        uri=prefix, manifest_sha256=manifest_sha256, metrics={}, imported_from=source,
    )  # fmt: skip
    db.add(version)
    await db.flush()
    if body.promote:
        await promotions.change(db, adapter, version, "import", Actor(key_id=caller.key_id), body.reason)
    return adapter, version


async def clear(storage: Storage, prefixes: list[str]) -> None:
    """Remove copies that nobody needs any more. What S3 refuses now stays, and is logged."""
    for prefix in prefixes:
        try:
            await storage.clear(prefix)
        except ApiError as problem:
            log.warning("not_removed", prefix=prefix, error=problem.message)


def _refused(why: str, param: str) -> BadRequest:
    return BadRequest(f"The adapter is not taken: {why}.", code="invalid_adapter", param=param)
