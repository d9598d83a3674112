"""Retry: a new job of the same body as one that failed or was cancelled. The old one stays as it is.

The worker that launches the new job seeds its train/ folder with the old one's last checkpoint (app/worker/seed.py); whether
that fits is decided by the training, by its key.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import BadRequest
from app.events import service as events
from app.jobs import lifecycle
from app.jobs.lifecycle import Status
from app.jobs.schemas import JobCreate
from app.models import Job


def body(old: Job) -> JobCreate:
    """The request that made a job, to be checked and accepted once more.

    Raises:
        BadRequest: `job_not_retryable`: it has neither failed nor was it cancelled.
    """
    if old.status not in (Status.FAILED, Status.CANCELLED):
        shown = "has succeeded" if old.status == Status.SUCCEEDED else f"is {old.status}"
        raise BadRequest(
            f"{old.id} {shown}; only a job that failed or was cancelled can be retried.", code="job_not_retryable"
        )
    own = {"metadata": old.job_metadata, "callback_url": old.callback_url, "callback_events": old.callback_events}
    return JobCreate.model_validate({**old.spec, **own})


async def tell(db: AsyncSession, old: Job, new: Job) -> None:
    """Write into both histories that the one is a retry of the other."""
    locked = await lifecycle.lock(db, old.id)
    await events.record(db, locked, f"Retried as {new.id}", data={"retried_as": new.id})
    await events.record(db, new, f"Retry of {old.id}", data={"retry_of": old.id})
