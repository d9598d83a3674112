"""/v1/feedback: say what an answer was worth, look at it by version, make training data of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from app.auth import Reader, Writer
from app.db import Session
from app.feedback import export, schemas, service
from app.pages import After, limit, page

router = APIRouter(prefix="/v1/feedback", tags=["Feedback"])

AdapterName = Annotated[str | None, Query(description="On versions of this adapter.", max_length=64)]


@router.post("", summary="Give feedback", response_model=schemas.Feedback)
async def give_feedback(body: schemas.FeedbackCreate, caller: Writer, db: Session) -> schemas.Feedback:
    """Rate an answer or correct it. Said again of the same answer, it replaces what was said before."""
    return schemas.Feedback.of(await service.give(db, caller, body))


@router.get("", summary="List feedback", response_model=schemas.FeedbackPage)
async def list_feedback(
    caller: Reader, db: Session, adapter: AdapterName = None, rating: schemas.Rating | None = None,
    after: After = None, limit: int = limit(20, 100),
) -> Any:  # fmt: skip
    """What was said, newest first."""
    rows, more = await service.listed(db, caller, adapter=adapter, rating=rating, after=after, limit=limit)
    return page([schemas.Feedback.of(row) for row in rows], more)


@router.get("/rates", summary="Rates of bad answers", response_model=schemas.RateList)
async def list_rates(caller: Reader, db: Session, adapter: AdapterName = None) -> schemas.RateList:
    """How many answers of each version were rated, and how many of these bad."""
    return schemas.RateList(data=await service.rates(db, caller.project_id, adapter))


@router.post("/export", summary="Export feedback as a dataset", response_model=schemas.Export)
async def export_feedback(body: schemas.ExportCreate, caller: Writer, request: Request) -> schemas.Export:
    """Corrected answers (and, if asked for, good ones) as `messages` on S3, without what was trained on or is held out."""
    state = request.app.state
    return await export.write(state.database, state.storage, state.settings, caller, body)


@router.get("/{feedback_id}", summary="Get feedback", response_model=schemas.Feedback)
async def get_feedback(feedback_id: str, caller: Reader, db: Session) -> schemas.Feedback:
    """One piece of feedback."""
    return schemas.Feedback.of(await service.get(db, caller, feedback_id))


@router.delete("/{feedback_id}", summary="Delete feedback", response_model=schemas.FeedbackDeleted)
async def delete_feedback(feedback_id: str, caller: Writer, db: Session) -> schemas.FeedbackDeleted:
    """Forget it, with the conversation it holds."""
    await db.delete(await service.get(db, caller, feedback_id))
    return schemas.FeedbackDeleted(id=feedback_id)
