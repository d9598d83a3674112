"""What a model name in a chat request stands for. Names are looked up whole, never taken apart; nothing of another project is seen.

In order: a base of the models file, an `ft:` model, an adapter's name (its promoted version), a checkpoint, a base that one of
the project's adapters stands on. Reads adapters, adapter_versions, checkpoints and jobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import String, cast, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import bases
from app.adapters import service as registry
from app.auth import Caller
from app.errors import NotFound
from app.inference.engines import Served
from app.models import Adapter, AdapterVersion, Checkpoint, Job
from finetune.config import nearest
from finetune.exit_codes import StepError
from finetune.model import catalog
from finetune.steps import ModelSource

NAMES_CONSIDERED = 500
"""Of a project's own models, the newest, among which a near one is looked for."""


async def find_model(db: AsyncSession, caller: Caller, name: str, *, models_file: Path | None = None) -> Served:
    """What answers for `name`.

    Args:
        db: The transaction.
        caller: Whose models are seen.
        name: `model` of the request.
        models_file: See `Settings.models_file`.
    Raises:
        NotFound: `model_not_found`, naming a near one if there is one.
    """
    entries = bases.entries(models_file)
    if base := _of_file(name, entries):
        return Served(base)
    for look in (_by_ft_id, _by_adapter_name, _by_checkpoint, _by_base):
        if found := await look(db, caller, name):
            return found
    raise await _unknown(db, caller, name, list(entries))


def _of_file(name: str, entries: dict[str, catalog.Entry]) -> ModelSource | None:
    known, at, _ = name.rpartition("@")
    if name not in entries and not (at and known in entries):
        return None
    try:
        return catalog.resolve(name, entries)
    except StepError as problem:
        raise NotFound(problem.message, code="model_not_found", param="model") from None


async def _by_ft_id(db: AsyncSession, caller: Caller, name: str) -> Served | None:
    version = await registry.find_version(db, caller.project_id, name)
    return _serve(version, version.uri, "adapter/", version.model) if version else None


async def _by_adapter_name(db: AsyncSession, caller: Caller, name: str) -> Served | None:
    mine = Adapter.project_id == caller.project_id
    adapter = (await db.execute(select(Adapter).where(mine, Adapter.name == name))).scalar_one_or_none()
    if adapter is None:
        return None
    wanted = (AdapterVersion.adapter_id == adapter.id, AdapterVersion.version == adapter.promoted_version)
    version = (await db.execute(select(AdapterVersion).where(*wanted))).scalar_one_or_none()
    if version is None:
        message = f"No version of the adapter {name!r} is promoted. Promote one, or use the ft: id of a version."
        raise NotFound(message, code="model_not_found", param="model")
    return _serve(version, version.uri, "adapter/", version.model)


async def _by_checkpoint(db: AsyncSession, caller: Caller, name: str) -> Served | None:
    shown = Job.fine_tuned_model + ":ckpt-step-" + cast(Checkpoint.step_number, String)
    query = (
        select(Checkpoint, AdapterVersion)
        .join(Job, Job.id == Checkpoint.job_id)
        .join(AdapterVersion, AdapterVersion.job_id == Checkpoint.job_id)
        .where(
            Checkpoint.project_id == caller.project_id,
            Checkpoint.uri.is_not(None),
            or_(Checkpoint.id == name, shown == name),
        )
    )
    found = (await db.execute(query)).one_or_none()
    if found is None:
        return None
    checkpoint, version = found
    return _serve(version, str(checkpoint.uri), "", name)


async def _by_base(db: AsyncSession, caller: Caller, name: str) -> Served | None:
    query = (
        select(AdapterVersion.base)
        .where(AdapterVersion.project_id == caller.project_id, AdapterVersion.base["id"].astext == name)
        .order_by(AdapterVersion.created_at.desc())
        .limit(1)
    )
    base = (await db.execute(query)).scalar_one_or_none()
    return Served(_source(base)) if base else None


def _serve(version: AdapterVersion, folder: str, below: str, name: str) -> Served:
    if version.unservable is not None:
        message = f"The model {name!r} cannot be served: {version.unservable} Train it again, or use another version."
        raise NotFound(message, code="model_unservable", param="model")
    adapter = {
        "id": name,
        "uri": folder.rstrip("/") + "/" + below,
        "manifest_uri": version.uri.rstrip("/") + "/manifest.json",
        "manifest_sha256": version.manifest_sha256,
    }
    return Served(_source(version.base), adapter)


def _source(base: dict[str, Any]) -> ModelSource:
    """Where a base lies, of the base.json kept with a version."""
    return ModelSource(**{key: base.get(key) for key in ModelSource.model_fields})


async def _unknown(db: AsyncSession, caller: Caller, name: str, known: list[str]) -> NotFound:
    own = (
        select(AdapterVersion.model).where(AdapterVersion.project_id == caller.project_id).order_by(AdapterVersion.created_at.desc()),
        select(Adapter.name).where(Adapter.project_id == caller.project_id).order_by(Adapter.created_at.desc()),
    )  # fmt: skip
    for query in own:
        known += (await db.execute(query.limit(NAMES_CONSIDERED))).scalars().all()
    near = nearest(name, known)
    hint = f"Did you mean {near!r}?" if near else "GET /v1/models lists what there is."
    return NotFound(f"The model {name!r} does not exist here. {hint}", code="model_not_found", param="model")
