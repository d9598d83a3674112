"""The registry: a name → its versions, one of them promoted. A version is registered in the transaction that ends its job.

May touch adapters and adapter_versions, and records events of the job; knows no S3 and no HTTP.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import NotFound
from app.events import service as events
from app.models import Adapter, AdapterVersion, Job, Project, new_id
from app.webhooks import outbox

MAX_NAME = 64
WHOLE = "model/"
"""The folder of a model of all weights, below its job's prefix."""


def slug(text: str) -> str | None:
    """An adapter name out of a suffix: `Küstennähe v2` → `kustennahe-v2`; None if nothing is left of it."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:MAX_NAME].rstrip("-") or None


def fine_tuned_model_name(job: Job, project_name: str) -> str:
    """The `ft:` id of a job's model: base, project, suffix (empty without one), and the end of the job's id."""
    return f"ft:{job.base['id']}:{project_name}:{job.suffix or ''}:{job.id[-8:]}"


def adapter_name(job: Job) -> str | None:
    """The name a job's version is registered under: `output.register_as`, else a slug of the suffix."""
    given: str | None = (job.spec.get("output") or {}).get("register_as")
    return given or (slug(job.suffix) if job.suffix else None)


def is_whole(version: AdapterVersion) -> bool:
    """Whether a version is a model of all weights, its own base, and no adapter."""
    return bool(version.base.get("location") == f"{version.uri.rstrip('/')}/{WHOLE}")


async def register_version(
    db: AsyncSession, job: Job, base: dict[str, Any], uri: str, manifest_sha256: str, metrics: dict[str, Any]
) -> AdapterVersion:
    """Register what a job made, and promote it: a job without a gate is compared with nothing.

    Args:
        db: The transaction that ends the job; the caller holds the job's row lock.
        job: It succeeded.
        base: `steps.Base` as JSON, revision pinned; of a model of all weights its own, below `uri`. Such a model has no
            adapter's name: it is reached by its `ft:` id.
        uri: S3 prefix that holds manifest.json and adapter/, ending in `/`.
        manifest_sha256: Of the manifest's bytes.
        metrics: Of training and evaluation.
    """
    made = (await db.execute(select(AdapterVersion).where(AdapterVersion.job_id == job.id))).scalar_one_or_none()
    if made is not None:
        return made
    project = await db.get_one(Project, job.project_id)
    whole = base.get("location") == f"{uri}{WHOLE}"
    name = None if whole else adapter_name(job)
    adapter = await _locked(db, job.project_id, name) if name else None
    version = AdapterVersion(
        id=new_id("adv_"),
        project_id=job.project_id,
        adapter_id=adapter.id if adapter else None,
        version=adapter.last_version + 1 if adapter else None,
        job_id=job.id,
        model=fine_tuned_model_name(job, project.name),
        base=base,
        uri=uri,
        manifest_sha256=manifest_sha256,
        metrics=metrics,
    )
    db.add(version)
    if adapter is not None:
        adapter.last_version = adapter.promoted_version = adapter.last_version + 1
        await db.flush()
        event = await events.record(
            db,
            job,
            f"Version {version.version} of adapter {adapter.name} is promoted; it was compared with nothing, as no gate was set",
            data={"adapter": adapter.name, "version": version.version},
        )
        promoted = {"name": adapter.name, "version": version.version, "model": version.model, "uri": uri}
        await outbox.owe(db, job, "adapter.promoted", event, {"adapter": promoted})
    await db.flush()
    return version


async def _locked(db: AsyncSession, project_id: str, name: str) -> Adapter:
    """The adapter of a name, made if need be; its row lock keeps version numbers apart."""
    made = insert(Adapter).values(id=new_id("adapter_"), project_id=project_id, name=name)
    await db.execute(made.on_conflict_do_nothing(index_elements=["project_id", "name"]))
    found = select(Adapter).where(Adapter.project_id == project_id, Adapter.name == name).with_for_update()
    return (await db.execute(found.execution_options(populate_existing=True))).scalar_one()


async def versions(db: AsyncSession, project_id: str) -> list[AdapterVersion]:
    """Every version of a project, newest first."""
    query = select(AdapterVersion).where(AdapterVersion.project_id == project_id)
    newest = query.order_by(AdapterVersion.created_at.desc(), AdapterVersion.id)
    return list((await db.execute(newest)).scalars())


async def find_version(db: AsyncSession, project_id: str, model: str) -> AdapterVersion | None:
    """The version of an `ft:` id, looked up whole."""
    query = select(AdapterVersion).where(AdapterVersion.project_id == project_id, AdapterVersion.model == model)
    return (await db.execute(query)).scalar_one_or_none()


async def of_jobs(db: AsyncSession, job_ids: list[str]) -> dict[str, tuple[str, int, bool]]:
    """Job id → adapter name, version and whether it is promoted, for jobs whose version has a name."""
    query = (
        select(AdapterVersion.job_id, Adapter.name, AdapterVersion.version, Adapter.promoted_version)
        .join(Adapter, Adapter.id == AdapterVersion.adapter_id)
        .where(AdapterVersion.job_id.in_(job_ids))
    )
    rows = (await db.execute(query)).all()
    return {str(job): (name, int(version or 0), version == promoted) for job, name, version, promoted in rows}


async def delete_version(db: AsyncSession, project_id: str, model: str) -> bool:
    """Forget the version of an `ft:` id; its objects stay on S3. If it was promoted, the newest one left is.

    Returns:
        False if there is none.
    """
    version = await find_version(db, project_id, model)
    if version is None:
        return False
    adapter = await db.get(Adapter, version.adapter_id, with_for_update=True) if version.adapter_id else None
    await db.delete(version)
    await db.flush()
    if adapter is not None and adapter.promoted_version == version.version:
        left = select(func.max(AdapterVersion.version)).where(AdapterVersion.adapter_id == adapter.id)
        adapter.promoted_version = (await db.execute(left)).scalar_one()
    return True


async def listed(db: AsyncSession, project_id: str) -> list[tuple[Adapter, list[AdapterVersion]]]:
    """A project's adapters by name, each with its versions, newest first."""
    query = select(Adapter).where(Adapter.project_id == project_id).order_by(Adapter.name)
    named: dict[str | None, list[AdapterVersion]] = {}
    for version in await versions(db, project_id):
        named.setdefault(version.adapter_id, []).append(version)
    return [(adapter, named.get(adapter.id, [])) for adapter in (await db.execute(query)).scalars()]


async def find(db: AsyncSession, project_id: str, name: str) -> tuple[Adapter, list[AdapterVersion]]:
    """An adapter and its versions, newest first.

    Raises:
        NotFound: `adapter_not_found`.
    """
    adapter = (
        await db.execute(select(Adapter).where(Adapter.project_id == project_id, Adapter.name == name))
    ).scalar_one_or_none()
    if adapter is None:
        raise NotFound(f"There is no adapter {name!r}.", code="adapter_not_found")
    query = select(AdapterVersion).where(AdapterVersion.adapter_id == adapter.id)
    return adapter, list((await db.execute(query.order_by(AdapterVersion.version.desc()))).scalars())
