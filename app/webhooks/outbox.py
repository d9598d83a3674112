"""What is owed to whom: one delivery row a callback, written in the transaction of the event it tells."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import func

from app.models import Event, Job, WebhookDelivery, WebhookEndpoint, new_id
from app.webhooks import event_types
from app.webhooks.target import host_of


async def owe(db: AsyncSession, job: Job, type: str, event: Event, more: dict[str, Any] | None = None) -> None:
    """Owe `type` to the job's callback URL and to every endpoint of its project that asked for it.

    Every terminal event goes to the callback URL, others when `callback_events` names them. Written once: the table refuses
    a second delivery of the same event to the same URL, and a second terminal one of a job.

    Args:
        db: The transaction of the fact.
        job: Whose.
        type: Such as `fine_tuning.job.succeeded`.
        event: The event of the job's history that this tells.
        more: Goes into the body's `data`, beside the job's essentials.
    """
    targets: list[tuple[str, str | None]] = []
    if job.callback_url and (type in event_types.DEFAULT or type in (job.callback_events or [])):
        targets.append((job.callback_url, None))
    targets += await _endpoints(db, job.project_id, type)
    if not targets:
        return
    fact = {"project_id": job.project_id, "job_id": job.id, "seq": event.seq, "type": type}
    await _write(db, targets, fact, _essentials(job) | (more or {}))


async def tell(db: AsyncSession, project_id: str, type: str, data: dict[str, Any]) -> None:
    """Owe an event that no job made to every endpoint of a project that asked for it. The caller sees that it is told once.

    Args:
        db: The transaction of the fact.
        data: The body's `data`.
    """
    if targets := await _endpoints(db, project_id, type):
        await _write(db, targets, {"project_id": project_id, "type": type}, data)


async def _endpoints(db: AsyncSession, project_id: str, type: str) -> list[tuple[str, str | None]]:
    endpoints = await db.execute(
        select(WebhookEndpoint).where(
            WebhookEndpoint.project_id == project_id,
            WebhookEndpoint.disabled_at.is_(None),
            WebhookEndpoint.deleted_at.is_(None),
        )
    )
    return [(endpoint.url, endpoint.id) for endpoint in endpoints.scalars() if type in endpoint.event_types]


async def _write(
    db: AsyncSession, targets: list[tuple[str, str | None]], fact: dict[str, Any], data: dict[str, Any]
) -> None:
    at: datetime = (await db.execute(select(func.clock_timestamp()))).scalar_one()
    for url, endpoint_id in targets:
        event_id = new_id("evt_")
        db.add(
            WebhookDelivery(
                id=new_id("whd_"),
                endpoint_id=endpoint_id,
                event_id=event_id,
                url=url,
                host=host_of(url),
                body=body_of(event_id, fact["type"], at, data),
                **fact,
            )
        )
    await db.flush()
    woken = str(fact.get("job_id") or fact["project_id"])
    await db.execute(text("select pg_notify('llamaflow_deliveries', :id)"), {"id": woken})


def body_of(event_id: str, type: str, at: datetime, data: dict[str, Any]) -> bytes:
    """The body: the official client's event shape."""
    event = {"id": event_id, "object": "event", "type": type, "created_at": int(at.timestamp()), "data": data}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _essentials(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "status": job.status,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "suffix": job.suffix,
        "trained_tokens": job.trained_tokens,
        "error": job.error,
        "output": job.output,
        "metadata": job.job_metadata,
    }
