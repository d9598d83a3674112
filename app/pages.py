"""Lists as the official clients page them: `limit` rows, `has_more` always there, `after` = the last id seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import BadRequest

Row = TypeVar("Row")

After = Annotated[str | None, Query(description="Rows behind the one with this id.", max_length=512)]


class Page(BaseModel):
    """A page of a list; `after` = `last_id` asks for the next one."""

    object: Literal["list"] = "list"
    has_more: bool
    first_id: str | None
    last_id: str | None


def limit(default: int, most: int) -> Any:
    """The query parameter `limit`."""
    return Query(default, description=f"Rows a page, 1 to {most:,}.", ge=1, le=most)


def cut(rows: Sequence[Row], limit: int) -> tuple[list[Row], bool]:
    """The page out of up to `limit + 1` rows, and whether there are more."""
    return list(rows[:limit]), len(rows) > limit


def page(data: list[Any], has_more: bool) -> dict[str, Any]:
    """The wire's list around objects that have an `id`."""
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
    }


def unknown_cursor(after: str) -> BadRequest:
    """The refusal of an `after` that is no row of the list."""
    return BadRequest(f"after names no row of this list: {after!r}.", code="invalid_value", param="after")


async def of_project(
    db: AsyncSession,
    table: type[Row],
    project_id: str,
    *only: ColumnElement[bool],
    after: str | None,
    limit: int,
    oldest_first: bool = False,
) -> tuple[list[Row], bool]:
    """A page of a project's rows by creation, newest first unless told otherwise, and whether there are more.

    Args:
        table: One with `project_id`, `created_at` and `id`.
        only: What else must hold of a row.

    Raises:
        BadRequest: `after` is no row of the project.
    """
    of: Any = table
    query = select(table).where(of.project_id == project_id, *only)
    columns = (of.created_at, of.id)
    if after is not None:
        last: Any = await db.get(table, after)
        if last is None or last.project_id != project_id:
            raise unknown_cursor(after)
        mark = tuple_(last.created_at, last.id)
        query = query.where(tuple_(*columns) > mark if oldest_first else tuple_(*columns) < mark)
    ordered = query.order_by(*(column.asc() if oldest_first else column.desc() for column in columns))
    return cut((await db.execute(ordered.limit(limit + 1))).scalars().all(), limit)
