"""/v1/adapters: names, their versions, which one is promoted and was before; import, lineage, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from app.adapters import combine, history, imports, lineage, pointer, promotions, removal, schemas, service
from app.adapters.combine_schemas import Combine, Combined
from app.adapters.promotions import ANYTHING
from app.auth import Reader, Writer
from app.db import Database, Session
from app.files.storage import Storage
from app.models import AdapterVersion
from app.pages import After, limit, page
from app.rates import Rates
from app.settings import Settings

router = APIRouter(prefix="/v1/adapters", tags=["Adapters"])

Number = Annotated[int, Path(description="Its number.", ge=1, le=2**63 - 1)]
Force = Annotated[bool, Query(description="Also what is promoted; the name answers with nothing then.")]


@router.post("/import", summary="Import an adapter", response_model=schemas.Version)
async def import_adapter(body: schemas.AdapterImport, caller: Writer, request: Request) -> schemas.Version:
    """Make a version of a PEFT adapter that was trained elsewhere: a folder on S3, or files uploaded before.

    Its files are looked at, copied to where nobody changes them, and vouched for by a manifest. Only plain LoRA in
    safetensors, on a base of the models file, at a pinned revision.
    """
    state, rates = request.app.state, _rates(request)
    with rates.uploading(caller.key_id):
        adapter, version = await imports.bring(state.database, state.storage, state.settings, caller, body)
    return schemas.version_of(version, adapter.promoted_version)


@router.post("/combine", summary="Combine adapters", response_model=Combined)
async def combine_adapters(body: Combine, caller: Writer, request: Request) -> Combined:
    """Let a name answer with several adapters over one base: routed by question, mixed by token, or merged into a version.

    `route` keeps what each adapter knows; merges forget. Adapters are used at their promoted versions, also when another one
    is promoted later; a merge is made once.
    """
    state = request.app.state
    return await combine.combine(state.database, state.storage, state.settings, state.engine, caller, body)


@router.get("", summary="List adapters", response_model=schemas.AdapterPage)
async def list_adapters(caller: Reader, db: Session) -> Any:
    """The project's named adapters, each with its versions."""
    found = await service.listed(db, caller.project_id)
    return page([schemas.Adapter.of(row, versions) for row, versions in found], False)


@router.get("/{name}", summary="Get an adapter", response_model=schemas.Adapter)
async def get_adapter(name: str, caller: Reader, db: Session) -> schemas.Adapter:
    """One adapter with its versions, newest first."""
    return schemas.Adapter.of(*await service.find(db, caller.project_id, name))


@router.patch("/{name}", include_in_schema=False, response_model=schemas.Adapter)
@router.post("/{name}", summary="Change an adapter", response_model=schemas.Adapter)
async def change_adapter(name: str, body: schemas.AdapterUpdate, caller: Writer, db: Session) -> schemas.Adapter:
    """Describe an adapter. PATCH does the same."""
    (await service.lock(db, caller.project_id, name)).description = body.description
    return schemas.Adapter.of(*await service.find(db, caller.project_id, name))


@router.delete("/{name}", summary="Delete an adapter", response_model=schemas.AdapterDeleted)
async def delete_adapter(name: str, caller: Writer, request: Request, force: Force = False) -> schemas.AdapterDeleted:
    """Forget an adapter and its versions. Results of jobs stay on S3; copies that an import made are removed."""
    async with _database(request).transaction() as db:
        prefixes = await removal.adapter(db, caller, name, force=force)
    await after_removal(request, caller.project_id, name, prefixes)
    return schemas.AdapterDeleted(name=name)


@router.post("/{name}/promote", summary="Promote a version", response_model=schemas.Adapter)
async def promote_version(name: str, body: schemas.Promote, caller: Writer, request: Request) -> schemas.Adapter:
    """Let the name answer with this version from the next request on. With `expected`, only if that one is promoted now."""
    expected = ANYTHING if body.expected is None else body.expected
    async with _database(request).transaction() as db:
        await promotions.promote(db, caller, name, body.version, expected=expected, reason=body.reason)
        told = schemas.Adapter.of(*await service.find(db, caller.project_id, name))
    await _point(request, caller.project_id, name)
    return told


@router.post("/{name}/rollback", summary="Roll back to the version before", response_model=schemas.Adapter)
async def roll_back(
    name: str, caller: Writer, request: Request, body: schemas.Rollback | None = None
) -> schemas.Adapter:
    """Let the name answer with the version promoted before. Asked again, it goes on to the one before that."""
    given = body or schemas.Rollback()
    expected = ANYTHING if given.expected is None else given.expected
    async with _database(request).transaction() as db:
        await promotions.rollback(db, caller, name, expected=expected, reason=given.reason)
        told = schemas.Adapter.of(*await service.find(db, caller.project_id, name))
    await _point(request, caller.project_id, name)
    return told


@router.get("/{name}/promotions", summary="List promotions", response_model=schemas.ChangePage)
async def list_promotions(
    name: str, caller: Reader, db: Session, after: After = None, limit: int = limit(20, 100)
) -> Any:
    """What the name answered with before: who changed it, when, from which version to which, why. Newest first."""
    await service.get(db, caller.project_id, name)
    rows, more = await history.listed(db, caller.project_id, name, after=after, limit=limit)
    return page([schemas.Change.of(row, key) for row, key in rows], more)


@router.get("/{name}/versions/{version}", summary="Get a version", response_model=schemas.Version)
async def get_version(name: str, version: Number, caller: Reader, db: Session) -> schemas.Version:
    """One version."""
    adapter = await service.get(db, caller.project_id, name)
    return schemas.version_of(await service.version_of(db, adapter, version), adapter.promoted_version)


@router.get(
    "/{name}/versions/{version}/lineage", summary="Show where a version comes from", response_model=schemas.Lineage
)
async def get_lineage(name: str, version: Number, caller: Reader, request: Request) -> schemas.Lineage:
    """Datasets with their hashes and rows, base and revision, configuration, code, image, metrics, parent."""
    storage: Storage = request.app.state.storage
    async with _database(request).transaction() as db:
        adapter = await service.get(db, caller.project_id, name)
        row = await service.version_of(db, adapter, version)
        job = await lineage.job_of(db, row)
    return await lineage.trace(storage, adapter, row, job)


@router.delete("/{name}/versions/{version}", summary="Delete a version", response_model=schemas.VersionDeleted)
async def delete_version(
    name: str, version: Number, caller: Writer, request: Request, force: Force = False
) -> schemas.VersionDeleted:
    """Forget a version. Its number is not given again. The promoted one is kept unless `force` is true."""
    async with _database(request).transaction() as db:
        adapter = await service.get(db, caller.project_id, name)
        row: AdapterVersion = await service.version_of(db, adapter, version)
        prefixes = await removal.version(db, caller, row, force=force)
    await after_removal(request, caller.project_id, name, prefixes)
    return schemas.VersionDeleted(name=name, version=version)


async def after_removal(request: Request, project_id: str, name: str | None, prefixes: list[str]) -> None:
    """What follows on S3 when versions are forgotten: copies that imports made go, the pointer is written again."""
    storage: Storage = request.app.state.storage
    await imports.clear(storage, prefixes)
    if name is not None:
        await _point(request, project_id, name)


async def _point(request: Request, project_id: str, name: str) -> None:
    settings: Settings = request.app.state.settings
    await pointer.write(_database(request), settings, project_id, name)


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _rates(request: Request) -> Rates:
    rates: Rates = request.app.state.rates
    return rates
