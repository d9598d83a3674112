"""A made-up event for an endpoint, so that its owner sees whether it arrives and is verified before a job depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import BadRequest
from app.models import WebhookEndpoint, new_id
from app.webhooks import delivery, outbox, signing
from app.webhooks.delivery import Sender

STATUS = {"checkpoint": "running"}
"""The job's status in a sample whose type names no status."""


@dataclass(frozen=True)
class Sample:
    """A body and its signed headers."""

    body: bytes
    signed: dict[str, str]


async def make(db: AsyncSession, endpoint: WebhookEndpoint, event_type: str) -> Sample:
    """A sample event, signed as a real one."""
    now = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    event_id = new_id("evt_")
    body = outbox.body_of(event_id, event_type, now, _data(event_type))
    secrets = await signing.valid(db, endpoint.project_id, endpoint.id)
    return Sample(body, delivery.headers(event_id, body, now, secrets))


async def send(sender: Sender, url: str, sample: Sample) -> int:
    """Send it once.

    Returns:
        The status that was answered, whatever it is.
    Raises:
        BadRequest: `webhook_endpoint_unreachable`: nothing was answered, and why.
    """
    outcome = await sender.attempt(url, sample.body, sample.signed)
    if outcome.status is None:
        raise BadRequest(f"{url} did not answer: {outcome.error}", code="webhook_endpoint_unreachable")
    return outcome.status


def _data(event_type: str) -> dict[str, Any]:
    name = event_type.rpartition(".")[2]
    status = STATUS.get(name, "succeeded" if name == "promoted" else name)
    data = {"id": "ftjob-sample", "object": "fine_tuning.job", "status": status, "sample": True}
    if name == "checkpoint":
        return data | {"checkpoint": {"id": "ftckpt_sample", "step_number": 100, "metrics": {"step": 100}}}
    if name == "promoted":
        return data | {"adapter": {"name": "sample", "version": 1, "model": "ft:sample", "uri": "s3://sample/"}}
    return data
