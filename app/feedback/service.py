"""Feedback in the database: given on kept completions, listed, rated by version. Knows no S3."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import service as adapters
from app.auth import Caller
from app.errors import BadRequest, NotFound
from app.feedback.schemas import FeedbackCreate, Rate
from app.models import Completion, Feedback, new_id
from app.pages import of_project

NOT_KEPT = (
    "There is no completion {id!r}. They are kept only of keys that say so "
    "(llamaflow keys set KEY --keep-completions DAYS), and until they expire."
)


async def give(db: AsyncSession, caller: Caller, body: FeedbackCreate) -> Feedback:
    """Say something of an answer; said again, it replaces what was said before.

    Raises:
        BadRequest: `empty_feedback`; `invalid_value`: there is no such choice.
        NotFound: `completion_not_found`.
    """
    correction = body.correction if body.correction is None or body.correction.strip() else ""
    if body.rating is None and not correction:
        message = (
            "There is nothing said: give rating ('good' or 'bad'), correction (a text that is not empty), or both."
        )
        raise BadRequest(message, code="empty_feedback", param="rating")
    if correction == "":
        message = "correction is empty. Leave it out, or say what should have been answered."
        raise BadRequest(message, code="empty_feedback", param="correction")
    found = await db.get(Completion, body.completion_id)
    if found is None or found.project_id != caller.project_id:
        raise NotFound(NOT_KEPT.format(id=body.completion_id), code="completion_not_found", param="completion_id")
    if body.choice >= len(found.answers):
        message = f"choice must be below {len(found.answers)}: so many answers the completion has."
        raise BadRequest(message, code="invalid_value", param="choice")
    version = await adapters.find_version(db, caller.project_id, found.served) if found.served else None
    name = await adapters.name_of(db, version) if version is not None else None
    mine = (Feedback.project_id == caller.project_id, Feedback.completion_id == found.id)
    query = select(Feedback).where(*mine, Feedback.choice == body.choice).with_for_update()
    row = (await db.execute(query)).scalar_one_or_none()
    if row is None:
        row = Feedback(
            id=new_id("fb_"), project_id=caller.project_id, completion_id=found.id, choice=body.choice, model=found.model,
            messages=found.messages, answer=found.answers[body.choice], adapter=name,
            version=version.version if version is not None and name else None,
        )  # fmt: skip
        db.add(row)
    row.api_key_id, row.rating = caller.key_id, body.rating or "bad"
    row.correction, row.comment = correction, body.comment
    row.updated_at = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    await db.flush()
    await db.refresh(row)
    return row


async def get(db: AsyncSession, caller: Caller, feedback_id: str) -> Feedback:
    """One.

    Raises:
        NotFound: `feedback_not_found`.
    """
    row = await db.get(Feedback, feedback_id)
    if row is None or row.project_id != caller.project_id:
        raise NotFound(f"There is no feedback {feedback_id!r}.", code="feedback_not_found")
    return row


async def listed(
    db: AsyncSession, caller: Caller, *, adapter: str | None, rating: str | None, after: str | None, limit: int
) -> tuple[list[Feedback], bool]:
    """A page of a project's feedback, newest first, and whether there is more."""
    asked = ((Feedback.adapter, adapter), (Feedback.rating, rating))
    only = [column == value for column, value in asked if value is not None]
    return await of_project(db, Feedback, caller.project_id, *only, after=after, limit=limit)


async def on(db: AsyncSession, project_id: str, adapter: str, *, since: datetime | None = None) -> list[Feedback]:
    """Feedback on the versions of an adapter, oldest first.

    Args:
        since: Only what was said, or said anew, after that.
    """
    query = select(Feedback).where(Feedback.project_id == project_id, Feedback.adapter == adapter)
    if since is not None:
        query = query.where(Feedback.updated_at > since)
    return list((await db.execute(query.order_by(Feedback.updated_at, Feedback.id))).scalars())


async def rates(db: AsyncSession, project_id: str, adapter: str | None = None) -> list[Rate]:
    """How versions were rated, the newest first."""
    query = select(
        Feedback.adapter,
        Feedback.version,
        func.count(),
        func.count().filter(Feedback.rating == "bad"),
        func.count(Feedback.correction),
    ).where(Feedback.project_id == project_id, Feedback.adapter.is_not(None), Feedback.version.is_not(None))
    if adapter is not None:
        query = query.where(Feedback.adapter == adapter)
    grouped = query.group_by(Feedback.adapter, Feedback.version)
    found = (await db.execute(grouped.order_by(Feedback.adapter, Feedback.version.desc()))).all()
    return [
        Rate(
            adapter=str(name), version=int(version or 0), ratings=ratings, bad=bad, bad_rate=bad / ratings,
            corrections=corrections,
        )
        for name, version, ratings, bad, corrections in found
    ]  # fmt: skip
