"""/v1/models: the bases of the models file and every fine-tuned model. /v1/adapters: see named.py."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.adapters import bases, removal, service
from app.adapters.named import Force, after_removal
from app.adapters.schemas import Model, ModelDeleted, ModelList
from app.auth import Caller, Reader, Writer
from app.db import Database, Session
from app.errors import BadRequest, NotFound
from app.models import AdapterVersion
from app.settings import Settings
from finetune.config import nearest

router = APIRouter(prefix="/v1")

BASES_CREATED = 0
"""A base has no time of its own in the models file."""


@router.get("/models", summary="List models", response_model=ModelList, tags=["Models"])
async def list_models(request: Request, caller: Reader, db: Session) -> Any:
    """Every model a chat can name: bases first, then fine-tuned models, newest first."""
    found = await service.versions(db, caller.project_id)
    return {"data": [*_bases(request), *(_fine_tuned(version, caller) for version in found)]}


@router.get("/models/{model:path}", summary="Get a model", response_model=Model, tags=["Models"])
async def get_model(model: str, request: Request, caller: Reader, db: Session) -> Model:
    """One model. Its id may hold slashes and colons, escaped or not."""
    base = next((base for base in _bases(request) if base.id == model), None)
    version = None if base else await service.find_version(db, caller.project_id, model)
    if base is None and version is None:
        raise _unknown(model, request)
    return base or _fine_tuned(version, caller)  # type: ignore[arg-type]


@router.delete(
    "/models/{model:path}", summary="Delete a fine-tuned model", response_model=ModelDeleted, tags=["Models"]
)
async def delete_model(model: str, request: Request, caller: Writer, force: Force = False) -> ModelDeleted:
    """Forget a fine-tuned model. A job's result stays where it is on S3. One that is promoted is kept unless `force` is true."""
    if any(base.id == model for base in _bases(request)):
        raise BadRequest(
            f"{model} is a base of the models file; only ft: models can be deleted.", code="unsupported_operation"
        )
    database: Database = request.app.state.database
    async with database.transaction() as db:
        version = await service.find_version(db, caller.project_id, model)
        if version is None:
            raise _unknown(model, request)
        name = await service.name_of(db, version)
        prefixes = await removal.version(db, caller, version, force=force)
    await after_removal(request, caller.project_id, name, prefixes)
    return ModelDeleted(id=model)


def _bases(request: Request) -> list[Model]:
    settings: Settings = request.app.state.settings
    return [
        Model(
            id=name,
            created=BASES_CREATED,
            owned_by=name.partition("/")[0] if "/" in name else "llamaflow",
            base=entry.alias or (entry.location if entry.source in ("hub", "s3") else "") or None,
            revision=entry.revision,
            license=entry.license,
            description=entry.description,
            limits=entry.limits(),
        )
        for name, entry in bases.entries(settings.models_file).items()
    ]


def _fine_tuned(version: AdapterVersion, caller: Caller) -> Model:
    return Model(
        id=version.model,
        created=int(version.created_at.timestamp()),
        owned_by=caller.project_name,
        base=version.base["id"],
        revision=version.base.get("revision"),
    )


def _unknown(model: str, request: Request) -> NotFound:
    near = nearest(model, [base.id for base in _bases(request)])
    hint = f"Did you mean {near!r}?" if near else "GET /v1/models lists what there is."
    return NotFound(f"The model {model!r} does not exist here. {hint}", code="model_not_found", param="model")
