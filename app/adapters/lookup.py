"""What one of a project's own models is made of: its base, and the adapter on it. Names are looked up whole, never taken apart.

In order: an `ft:` model, an adapter's name (its promoted version), a checkpoint. What another project has is not seen.
Reads adapters, adapter_versions, checkpoints and jobs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import String, cast, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import service as registry
from app.errors import NotFound
from app.models import Adapter, AdapterVersion, Checkpoint, Job
from finetune.steps import ModelSource, Parent


@dataclass(frozen=True)
class Found:
    """A model of the project.

    Attributes:
        base: Where its base comes from, pinned.
        adapter: What lies on it; None for a model of all weights, which is its own base.
    """

    base: ModelSource
    adapter: Parent | None


async def find(db: AsyncSession, project_id: str, name: str) -> Found | None:
    """The model of a name; None if the project has none.

    Raises:
        NotFound: `model_not_found`: no version of the adapter is promoted; `model_unservable`: its objects are gone.
    """
    for look in (_by_ft_id, _by_adapter_name, _by_checkpoint):
        if found := await look(db, project_id, name):
            return found
    return None


async def _by_ft_id(db: AsyncSession, project_id: str, name: str) -> Found | None:
    version = await registry.find_version(db, project_id, name)
    return _found(version, version.uri, "adapter/", version.model) if version else None


async def _by_adapter_name(db: AsyncSession, project_id: str, name: str) -> Found | None:
    mine = Adapter.project_id == project_id
    adapter = (await db.execute(select(Adapter).where(mine, Adapter.name == name))).scalar_one_or_none()
    if adapter is None:
        return None
    version = await registry.promoted(db, adapter)
    if version is None:
        message = f"No version of the adapter {name!r} is promoted. Promote one, or use the ft: id of a version."
        raise NotFound(message, code="model_not_found", param="model")
    return _found(version, version.uri, "adapter/", version.model)


async def _by_checkpoint(db: AsyncSession, project_id: str, name: str) -> Found | None:
    shown = Job.fine_tuned_model + ":ckpt-step-" + cast(Checkpoint.step_number, String)
    query = (
        select(Checkpoint, AdapterVersion)
        .join(Job, Job.id == Checkpoint.job_id)
        .join(AdapterVersion, AdapterVersion.job_id == Checkpoint.job_id)
        .where(
            Checkpoint.project_id == project_id,
            Checkpoint.uri.is_not(None),
            or_(Checkpoint.id == name, shown == name),
        )
    )
    found = (await db.execute(query)).one_or_none()
    if found is None:
        return None
    checkpoint, version = found
    return _found(version, str(checkpoint.uri), "", name)


def _found(version: AdapterVersion, folder: str, below: str, name: str) -> Found:
    if version.unservable is not None:
        message = f"The model {name!r} cannot be served: {version.unservable} Train it again, or use another version."
        raise NotFound(message, code="model_unservable", param="model")
    if registry.is_whole(version):
        return Found(base_of(version.base), None)
    adapter = Parent(
        id=name,
        uri=folder.rstrip("/") + "/" + below,
        manifest_uri=version.uri.rstrip("/") + "/manifest.json",
        manifest_sha256=version.manifest_sha256,
    )
    return Found(base_of(version.base), adapter)


def base_of(base: dict[str, Any]) -> ModelSource:
    """Where a base lies, of the base.json kept with a version."""
    return ModelSource(**{key: base.get(key) for key in ModelSource.model_fields})
