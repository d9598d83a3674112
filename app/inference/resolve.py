"""What a model name in a chat request stands for. Names are looked up whole, never taken apart; nothing of another project is seen.

In order: a base of the models file, a combination of adapters that has a name, one of the project's own models
(app/adapters/lookup.py), adapters combined for this request (`schema+kpi`), a base that one of the project's adapters stands on.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import bases, combine, lookup
from app.auth import Caller
from app.errors import NotFound
from app.inference.engines import Served
from app.models import Adapter, AdapterVersion
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
        BadRequest: `incompatible_bases`, `unsupported_operation`: a combination that cannot be.
    """
    entries = bases.entries(models_file)
    if base := _of_file(name, entries):
        return Served(base)
    if several := await combine.find(db, caller.project_id, name):
        return Served(several.base, combination=several.as_json())
    if own := await lookup.find(db, caller.project_id, name):
        return Served(own.base, own.adapter.model_dump() if own.adapter else None)
    if several := await combine.ad_hoc(db, caller.project_id, name):
        return Served(several.base, combination=several.as_json())
    if found := await _by_base(db, caller, name):
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


async def _by_base(db: AsyncSession, caller: Caller, name: str) -> Served | None:
    query = (
        select(AdapterVersion.base)
        .where(AdapterVersion.project_id == caller.project_id, AdapterVersion.base["id"].astext == name)
        .order_by(AdapterVersion.created_at.desc())
        .limit(1)
    )
    base = (await db.execute(query)).scalar_one_or_none()
    return Served(lookup.base_of(base)) if base else None


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
