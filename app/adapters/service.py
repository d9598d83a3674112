"""The registry: a name → its versions, one of them promoted. A version is registered in the transaction that ends its job.

May touch adapters, adapter_versions and promotions, and records events of the job; knows no S3 and no HTTP.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import history
from app.adapters.history import Actor
from app.errors import NotFound
from app.events import service as events
from app.models import Adapter, AdapterVersion, Job, Project, new_id
from app.webhooks import outbox
from finetune.config import nearest
from finetune.model.product import MODEL

if TYPE_CHECKING:
    from app.adapters.gate import Verdict

MAX_NAME = 64
NAMED = 20
"""Versions named in an error, the newest."""
NAMES_CONSIDERED = 500
"""Adapters, the newest, among which a near name is looked for."""
WHOLE = MODEL
"""The folder of a model of all weights, below its job's prefix."""
NO_GATE = "compared with nothing, as no gate was set"


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
    db: AsyncSession,
    job: Job,
    base: dict[str, Any],
    uri: str,
    manifest_sha256: str,
    metrics: dict[str, Any],
    verdict: Verdict | None = None,
) -> AdapterVersion:
    """Register what a job made, and promote it unless its gate says otherwise: a job without a gate is compared with nothing.

    Args:
        db: The transaction that ends the job; the caller holds the job's row lock.
        job: It succeeded.
        base: `steps.Base` as JSON, revision pinned; of a model of all weights its own, below `uri`. Such a model has no
            adapter's name: it is reached by its `ft:` id.
        uri: S3 prefix that holds manifest.json and adapter/, ending in `/`.
        manifest_sha256: Of the manifest's bytes.
        metrics: Of training and evaluation.
        verdict: Of the gate; None without one.
    """
    known = (await db.execute(select(AdapterVersion).where(AdapterVersion.job_id == job.id))).scalar_one_or_none()
    if known is not None:
        return known
    project = await db.get_one(Project, job.project_id)
    whole = base.get("location") == f"{uri}{WHOLE}"
    name = None if whole else adapter_name(job)
    adapter = await made(db, job.project_id, name) if name else None
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
        verdict=verdict.word if verdict else None,
        gate=verdict.as_json() if verdict else None,
    )
    db.add(version)
    if adapter is not None:
        adapter.last_version += 1
        await db.flush()
    await _tell(db, job, adapter, version, verdict)
    await db.flush()
    return version


async def _tell(
    db: AsyncSession, job: Job, adapter: Adapter | None, version: AdapterVersion, verdict: Verdict | None
) -> None:
    """What became of a new version: promoted or not, as event, in the history, and owed to endpoints."""
    data: dict[str, Any] = {"gate": verdict.as_json()} if verdict else {}
    if adapter is None:
        if verdict is not None:
            level = "info" if verdict.code == "unnamed" else "warn"
            await events.record(db, job, verdict.sentence(version.model), level=level, data=data)
        return
    what = f"Version {version.version} of adapter {adapter.name}"
    data |= {"adapter": adapter.name, "version": version.version, "promoted": verdict is None or verdict.promoted}
    if verdict is not None and not verdict.promoted:
        await events.record(db, job, verdict.sentence(what), level="warn", data=data)
        return
    reason = f"better than {verdict.against}: {verdict.reason}" if verdict else NO_GATE
    await history.record(db, adapter, version.version, "job", Actor(job_id=job.id), reason)
    message = verdict.sentence(what) if verdict else f"{what} is promoted; it was {NO_GATE}"
    event = await events.record(db, job, message, data=data)
    await outbox.owe(db, job, "adapter.promoted", event, {"adapter": as_told(adapter, version)})


async def made(db: AsyncSession, project_id: str, name: str) -> Adapter:
    """The adapter of a name, made if need be; its row lock keeps version numbers apart. A deleted one's are not given again."""
    new = insert(Adapter).values(id=new_id("adapter_"), project_id=project_id, name=name)
    await db.execute(new.on_conflict_do_nothing(index_elements=["project_id", "name"]))
    adapter = await lock(db, project_id, name)
    if adapter.last_version == 0 and (before := await history.newest(db, project_id, name)):
        adapter.last_version = before.last_version
    return adapter


async def lock(db: AsyncSession, project_id: str, name: str) -> Adapter:
    """The adapter of a name, with its row lock.

    Raises:
        NotFound: `adapter_not_found`.
    """
    found = select(Adapter).where(Adapter.project_id == project_id, Adapter.name == name).with_for_update()
    adapter = (await db.execute(found.execution_options(populate_existing=True))).scalar_one_or_none()
    if adapter is None:
        raise await _unknown(db, project_id, name)
    return adapter


async def version_of(db: AsyncSession, adapter: Adapter, number: int) -> AdapterVersion:
    """A version by its number.

    Raises:
        NotFound: `version_not_found`, naming those there are.
    """
    mine = AdapterVersion.adapter_id == adapter.id
    found = select(AdapterVersion).where(mine, AdapterVersion.version == number)
    row = (await db.execute(found)).scalar_one_or_none()
    if row is None:
        newest = select(AdapterVersion.version).where(mine).order_by(AdapterVersion.version.desc()).limit(NAMED)
        there = ", ".join(map(str, (await db.execute(newest)).scalars())) or "none"
        message = f"The adapter {adapter.name} has no version {number}; there are: {there}."
        raise NotFound(message, code="version_not_found", param="version")
    return row


async def promoted(db: AsyncSession, adapter: Adapter) -> AdapterVersion | None:
    """The version that the adapter's name answers with."""
    wanted = (AdapterVersion.adapter_id == adapter.id, AdapterVersion.version == adapter.promoted_version)
    return (await db.execute(select(AdapterVersion).where(*wanted))).scalar_one_or_none()


def as_told(adapter: Adapter, version: AdapterVersion) -> dict[str, Any]:
    """What events say of a promoted version."""
    return {"name": adapter.name, "version": version.version, "model": version.model, "uri": version.uri}


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


async def name_of(db: AsyncSession, version: AdapterVersion) -> str | None:
    """The adapter's name of a version; None if it has none."""
    return (await db.execute(select(Adapter.name).where(Adapter.id == version.adapter_id))).scalar_one_or_none()


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
        NotFound: `adapter_not_found`, naming a near one if there is one.
    """
    adapter = await get(db, project_id, name)
    query = select(AdapterVersion).where(AdapterVersion.adapter_id == adapter.id)
    return adapter, list((await db.execute(query.order_by(AdapterVersion.version.desc()))).scalars())


async def get(db: AsyncSession, project_id: str, name: str) -> Adapter:
    """An adapter.

    Raises:
        NotFound: `adapter_not_found`, naming a near one if there is one.
    """
    mine = (Adapter.project_id == project_id, Adapter.name == name)
    adapter = (await db.execute(select(Adapter).where(*mine))).scalar_one_or_none()
    if adapter is None:
        raise await _unknown(db, project_id, name)
    return adapter


async def _unknown(db: AsyncSession, project_id: str, name: str) -> NotFound:
    mine = select(Adapter.name).where(Adapter.project_id == project_id).order_by(Adapter.created_at.desc())
    near = nearest(name, list((await db.execute(mine.limit(NAMES_CONSIDERED))).scalars()))
    hint = f"Did you mean {near!r}?" if near else "GET /v1/adapters lists what there is."
    return NotFound(f"There is no adapter {name!r}. {hint}", code="adapter_not_found")
