"""Responses that are kept for a while: to be had again, and to be gone on from.

Kept in the database, seen by their project alone, and forgotten by `llamaflow housekeeping` after
`LLAMAFLOW_KEEP_RESPONSES`. Each holds its whole conversation, so one may be deleted that others went on from.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import BadRequest, NotFound
from app.inference.responses.ask import Messages
from app.inference.responses.schemas import ModelResponse
from app.models import KeptResponse


async def keep(db: AsyncSession, project: str, response: ModelResponse, messages: Messages, *, seconds: float) -> None:
    """Keep a response.

    Args:
        db: The transaction.
        project: Whose it is.
        response: Whole.
        messages: The conversation it answers, without instructions.
        seconds: For how long.
    """
    db.add(
        KeptResponse(
            id=response.id,
            project_id=project,
            messages=messages,
            response=response.model_dump(mode="json"),
            expires_at=func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds),
        )
    )


async def find(db: AsyncSession, project: str, response_id: str) -> KeptResponse:
    """A response that is kept.

    Raises:
        NotFound: `response_not_found`: there is none, or no longer, or it is another project's.
    """
    asked = select(KeptResponse).where(
        KeptResponse.id == response_id,
        KeptResponse.project_id == project,
        KeptResponse.expires_at > func.clock_timestamp(),
    )
    found = (await db.execute(asked)).scalar_one_or_none()
    if found is None:
        raise NotFound(
            f"There is no response {response_id!r} here; it may have been deleted, not stored, or too old.",
            code="response_not_found",
            param="response_id",
        )
    return found


async def before(db: AsyncSession, project: str, response_id: str | None) -> Messages:
    """The conversation that a request goes on from, with its answer; empty if it goes on from none.

    Raises:
        BadRequest: `previous_response_not_found`.
    """
    if response_id is None:
        return []
    try:
        found = await find(db, project, response_id)
    except NotFound as problem:
        raise BadRequest(
            f"{problem.message} Send the whole conversation in `input` instead.",
            code="previous_response_not_found",
            param="previous_response_id",
        ) from None
    return [*found.messages, {"role": "assistant", "content": _text(found.response)}]


async def forget(db: AsyncSession, project: str, response_id: str) -> None:
    """Delete a response.

    Raises:
        NotFound: As `find`.
    """
    found = await find(db, project, response_id)
    await db.execute(delete(KeptResponse).where(KeptResponse.id == found.id))


def _text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])
