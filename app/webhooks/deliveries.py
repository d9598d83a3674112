"""/v1/fine_tuning/jobs/{id}/deliveries, /v1/webhook_deliveries: what was sent where, what was answered, and sending it again."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.auth import Reader, Writer
from app.db import Session
from app.jobs import service as jobs
from app.models import WebhookDelivery
from app.pages import After, limit, page
from app.webhooks import log, schemas

router = APIRouter(prefix="/v1", tags=["Webhooks"])


@router.get(
    "/fine_tuning/jobs/{job_id}/deliveries", summary="List a job's deliveries", response_model=schemas.DeliveryPage
)
async def list_job_deliveries(
    job_id: str, caller: Reader, db: Session, after: After = None, limit: int = limit(20, 100)
) -> Any:
    """What is owed because of a job, newest first, each with its attempts."""
    job = await jobs.find(db, caller, job_id)
    found, more = await log.listed(db, caller, WebhookDelivery.job_id == job.id, after=after, limit=limit)
    return page([_shown(entry) for entry in found], more)


@router.get("/webhook_deliveries", summary="List deliveries", response_model=schemas.DeliveryPage)
async def list_deliveries(
    caller: Reader,
    db: Session,
    after: After = None,
    limit: int = limit(20, 100),
    status: Annotated[Literal["pending", "delivered", "dead"] | None, Query(description="Only these.")] = None,
    endpoint_id: Annotated[str | None, Query(description="Only those of an endpoint.", max_length=64)] = None,
) -> Any:
    """The project's deliveries, newest first; `status=dead` lists what was given up."""
    asked = ((WebhookDelivery.status, status), (WebhookDelivery.endpoint_id, endpoint_id))
    only = [column == value for column, value in asked if value is not None]
    found, more = await log.listed(db, caller, *only, after=after, limit=limit)
    return page([_shown(entry) for entry in found], more)


@router.get("/webhook_deliveries/{delivery_id}", summary="Get a delivery", response_model=schemas.DeliveryWithPayload)
async def get_delivery(delivery_id: str, caller: Reader, db: Session) -> schemas.DeliveryWithPayload:
    """One delivery, with what is sent and every attempt."""
    return await _whole(db, await log.find(db, caller, delivery_id))


@router.post(
    "/webhook_deliveries/{delivery_id}/redeliver", summary="Send again", response_model=schemas.DeliveryWithPayload
)
async def redeliver(delivery_id: str, caller: Writer, db: Session) -> schemas.DeliveryWithPayload:
    """Send a delivery again, whatever became of it: the same bytes under the same id, the schedule from its start."""
    return await _whole(db, await log.again(db, caller, delivery_id))


async def _whole(db: Session, row: WebhookDelivery) -> schemas.DeliveryWithPayload:
    [entry] = await log.entries(db, [row])
    fields = schemas.delivery(entry.row, entry.attempts, entry.held_until)
    return schemas.DeliveryWithPayload(**fields, payload=json.loads(row.body))


def _shown(entry: log.Entry) -> schemas.Delivery:
    return schemas.Delivery(**schemas.delivery(entry.row, entry.attempts, entry.held_until))
