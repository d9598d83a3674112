"""Combinations: a name that answers with several adapters. Kept on the adapter's row, or merged into a version of it.

Members are named, not pinned: what a member's name is promoted to is what the combination uses from then on. May touch
adapters, adapter_versions and promotions; merges are computed by the engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import history, lookup, pointer, promotions, service
from app.adapters.combine_schemas import MERGES, Combine, Combined
from app.adapters.history import Actor
from app.auth import Caller
from app.db import Database
from app.errors import ApiError, BadRequest, NotFound
from app.files.storage import Storage
from app.models import Adapter, AdapterVersion, new_id
from app.settings import Settings
from finetune.model.peft_folder import Imported
from finetune.steps import Manifest, ModelSource, Parent

NAME = re.compile(r"[a-z0-9-]{1,64}")
MOST = 8
"""Adapters of one combination."""


@dataclass(frozen=True)
class Member:
    """One adapter of a combination: its name, the promoted version, and where that lies."""

    name: str
    version: AdapterVersion
    adapter: Parent


@dataclass(frozen=True)
class Several:
    """What answers for a combination.

    Attributes:
        base: Of all members.
        members: In the order they were named.
        method: None: as the engine finds best.
        threshold: None: the engine's own.
    """

    base: ModelSource
    members: tuple[Member, ...]
    method: str | None = None
    threshold: float | None = None

    def as_json(self) -> dict[str, Any]:
        """`llamaflow.combination` of a request to an engine."""
        told: dict[str, Any] = {
            "members": [{"name": one.name, "adapter": one.adapter.model_dump()} for one in self.members]
        }
        more = {"method": self.method, "threshold": self.threshold}
        return told | {key: value for key, value in more.items() if value is not None}


class Merger(Protocol):
    """What computes merges: an engine."""

    async def merge(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Make one adapter of several; `files` and `lora` of what was put at `target`."""
        ...


async def find(db: AsyncSession, project_id: str, name: str) -> Several | None:
    """The combination that an adapter's name stands for; None if it is none.

    Raises:
        BadRequest: See `of_names`.
    """
    mine = (Adapter.project_id == project_id, Adapter.name == name)
    row = (await db.execute(select(Adapter).where(*mine))).scalar_one_or_none()
    if row is None or row.combination is None:
        return None
    names = [part["name"] for part in row.combination["adapters"]]
    found = await of_names(db, project_id, names, param="model")
    return Several(found.base, found.members, row.combination["method"], row.combination.get("threshold"))


async def ad_hoc(db: AsyncSession, project_id: str, name: str) -> Several | None:
    """The combination `schema+kpi` asks for; None where the name is no list of adapters' names.

    Raises:
        BadRequest: See `of_names`.
    """
    names = name.split("+")
    if len(names) < 2 or not all(NAME.fullmatch(one) for one in names):
        return None
    if len(names) > MOST or len(set(names)) < len(names):
        message = f"A combination is of two to {MOST} different adapters."
        raise BadRequest(message, code="invalid_value", param="model")
    return await of_names(db, project_id, names, param="model")


async def of_names(db: AsyncSession, project_id: str, names: list[str], *, param: str) -> Several:
    """Adapters by their names, each at its promoted version.

    Raises:
        NotFound: `adapter_not_found`, `model_not_found`: one is not there, or none of its versions is promoted.
        BadRequest: `incompatible_bases`, naming them; `unsupported_operation`: one is a combination itself.
    """
    members = []
    for name in names:
        row = await _adapter(db, project_id, name, param)
        if row.combination is not None:
            message = f"{name} is a combination itself. Name its adapters instead."
            raise BadRequest(message, code="unsupported_operation", param=param)
        found = await lookup.find(db, project_id, name)
        version = await service.promoted(db, row)
        assert found is not None and version is not None and found.adapter is not None  # noqa: S101, PT018  it has one
        members.append(Member(name, version, found.adapter))
    _one_base(members, param)
    return Several(lookup.base_of(members[0].version.base), tuple(members))


async def combine(
    database: Database, storage: Storage, settings: Settings, merger: Merger, caller: Caller, body: Combine
) -> Combined:
    """Let a name stand for a combination of adapters.

    Raises:
        NotFound, BadRequest: As `of_names`.
        ApiError: The engine is away, or refuses the merge.
    """
    names = [part.name for part in body.adapters]
    told = Combined(
        name=body.name,
        method=body.method,
        adapters=[part.model_dump() for part in body.adapters],
        threshold=body.threshold,
    )
    async with database.transaction() as db:
        several = await of_names(db, caller.project_id, names, param="adapters")
        if body.method not in MERGES:
            await _keep(db, caller, body)
    if body.method in MERGES:
        version = await _merged(database, storage, settings, merger, caller, body, several)
        told = told.model_copy(update={"version": version})
    await pointer.write(database, settings, caller.project_id, body.name)
    return told


async def _keep(db: AsyncSession, caller: Caller, body: Combine) -> None:
    row = await service.made(db, caller.project_id, body.name)
    if row.promoted_version is not None:
        reason = body.reason or f"the name combines {', '.join(part.name for part in body.adapters)}"
        await history.record(db, row, None, "request", Actor(key_id=caller.key_id), reason)
    if body.description is not None:
        row.description = body.description
    row.combination = {
        "method": body.method,
        "adapters": [part.model_dump() for part in body.adapters],
        "threshold": body.threshold,
    }
    await db.flush()


async def _merged(
    database: Database,
    storage: Storage,
    settings: Settings,
    merger: Merger,
    caller: Caller,
    body: Combine,
    several: Several,
) -> int:
    """Merge the members, vouch for the outcome, and register it as a version that is promoted."""
    version_id = new_id("adv_")
    prefix = f"{pointer.home(settings, caller.project_id, body.name)}{version_id}/"
    weights = [part.weight for part in body.adapters]
    asked = several.as_json() | {
        "base": several.base.model_dump(mode="json"),
        "weights": weights,
        "method": body.method,
        "density": body.density,
        "target": f"{prefix}adapter/",
    }
    source = f"{body.method} of " + ", ".join(
        f"{one.name} {one.version.version} × {weight:g}" for one, weight in zip(several.members, weights, strict=True)
    )
    try:
        made = await merger.merge(asked)
        files = [Manifest.File(**file | {"path": f"adapter/{file['path']}"}) for file in made["files"]]
        manifest = Imported(
            created_at=int(time.time()), base=several.base, source=source, lora=made["lora"], files=files
        )
        content = manifest.text().encode()
        await storage.put(f"{prefix}manifest.json", content)
        async with database.transaction() as db:
            return await _register(db, caller, body, several, version_id, prefix, content, source)
    except BaseException:
        with suppress(ApiError):
            await asyncio.shield(storage.clear(prefix))
        raise


async def _register(
    db: AsyncSession,
    caller: Caller,
    body: Combine,
    several: Several,
    version_id: str,
    prefix: str,
    manifest: bytes,
    source: str,
) -> int:
    adapter = await service.made(db, caller.project_id, body.name)
    adapter.last_version += 1
    if body.description is not None:
        adapter.description = body.description
    base = several.base
    version = AdapterVersion(
        id=version_id, project_id=caller.project_id, adapter_id=adapter.id, version=adapter.last_version,
        model=f"ft:{base.id}:{caller.project_name}:{body.name}:{version_id[-8:]}", base=base.model_dump(mode="json"),
        uri=prefix, manifest_sha256=hashlib.sha256(manifest).hexdigest(), metrics={}, imported_from=source,
    )  # fmt: skip
    db.add(version)
    await db.flush()
    await promotions.change(db, adapter, version, "request", Actor(key_id=caller.key_id), body.reason or source)
    return adapter.last_version


async def _adapter(db: AsyncSession, project_id: str, name: str, param: str) -> Adapter:
    try:
        return await service.get(db, project_id, name)
    except NotFound as problem:
        problem.param = param
        raise


def _one_base(members: list[Member], param: str) -> None:
    stands = {one.name: (one.version.base["id"], one.version.base.get("revision")) for one in members}
    if len({revision for _, revision in stands.values()}) == 1:
        return
    told = "; ".join(f"{name} on {base} at {str(revision)[:12]}" for name, (base, revision) in stands.items())
    message = f"Adapters of one combination stand on one base at one revision, and these do not: {told}."
    raise BadRequest(message, code="incompatible_bases", param=param)
