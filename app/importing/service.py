"""What was brought from another service: kept as it was told, by project and by its id there. Commits nothing."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.errors import BadRequest, NotFound
from app.importing.schemas import ImportPut
from app.models import Import, ImportEvent, new_id
from app.pages import cut, unknown_cursor


async def put(db: AsyncSession, caller: Caller, body: ImportPut) -> Import:
    """Keep an object, or what is newly known of it. The same twice changes nothing.

    Raises:
        BadRequest: `invalid_value`: there is one of the other kind under this id.
    """
    made = insert(Import).values(
        id=new_id("imp_"), project_id=caller.project_id, source_id=body.id, kind=body.kind, body=body.object
    )
    await db.execute(made.on_conflict_do_nothing(index_elements=["project_id", "source_id"]))
    row = await find(db, caller, body.id, lock=True)
    if row.kind != body.kind:
        raise BadRequest(f"{body.id} was imported as a {row.kind}.", code="invalid_value", param="kind")
    row.body = body.object
    for name in ("checkpoints", "file_id", "job_id", "complete"):
        if (value := getattr(body, name)) is not None:
            setattr(row, name, value)
    row.updated_at = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    return row


async def find(db: AsyncSession, caller: Caller, source_id: str, *, lock: bool = False) -> Import:
    """An import of the caller's project.

    Raises:
        NotFound: `import_not_found`: not there, or another project's.
    """
    query = select(Import).where(Import.project_id == caller.project_id, Import.source_id == source_id)
    row = (await db.execute(query.with_for_update() if lock else query)).scalar_one_or_none()
    if row is None:
        raise NotFound(f"Nothing was imported under {source_id!r}.", code="import_not_found")
    return row


async def listed(
    db: AsyncSession, caller: Caller, *, kind: str | None, after: str | None, limit: int
) -> tuple[list[Import], bool]:
    """A page of what was imported, by its id there, and whether there is more."""
    query = select(Import).where(Import.project_id == caller.project_id)
    query = query.where(Import.kind == kind) if kind is not None else query
    query = query.where(Import.source_id > after) if after is not None else query
    found = await db.execute(query.order_by(Import.source_id).limit(limit + 1))
    return cut(found.scalars().all(), limit)


async def add_events(db: AsyncSession, row: Import, events: list[dict[str, Any]]) -> int:
    """Keep events of an imported job, each once; how many there are then.

    Raises:
        BadRequest: `invalid_value`: one has no id or no time.
    """
    values = []
    for at, event in enumerate(events):
        number, created = event.get("id"), event.get("created_at")
        if not isinstance(number, str) or not number or not _is_time(created):
            message = f"events[{at}] must have an id, and created_at in seconds."
            raise BadRequest(message, code="invalid_value", param=f"events[{at}]")
        values.append({"import_id": row.id, "event_id": number[:256], "at": created, "body": event})
    if values:
        await db.execute(insert(ImportEvent).values(values).on_conflict_do_nothing())
    counted = select(func.count()).select_from(ImportEvent).where(ImportEvent.import_id == row.id)
    return int((await db.execute(counted)).scalar_one())


async def events(db: AsyncSession, row: Import, *, after: str | None, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """A page of an imported job's events, newest first, and whether there are more."""
    query = select(ImportEvent).where(ImportEvent.import_id == row.id)
    if after is not None:
        last = await db.get(ImportEvent, (row.id, after))
        if last is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(ImportEvent.at, ImportEvent.event_id) < tuple_(last.at, last.event_id))
    newest = query.order_by(ImportEvent.at.desc(), ImportEvent.event_id.desc()).limit(limit + 1)
    found, more = cut((await db.execute(newest)).scalars().all(), limit)
    return [event.body for event in found], more


async def forget(db: AsyncSession, row: Import) -> None:
    """Delete an import with its events."""
    await db.execute(delete(Import).where(Import.id == row.id))


def _is_time(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
