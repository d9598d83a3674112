"""The wire shapes of endpoints, secrets and deliveries: the official client's where it has them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.models import DeliveryAttempt as AttemptRow
from app.models import WebhookDelivery as DeliveryRow
from app.models import WebhookEndpoint as EndpointRow
from app.pages import Page
from app.validation import unstorable
from app.webhooks.event_types import DEFAULT, EventType

Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=16)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        unstorable(data)
        return data


class EndpointCreate(_Body):
    """A new receiver."""

    name: Name = Field(description="For people.")
    url: str = Field(description="Where the signed events go.")
    event_types: EventTypes = Field(list(DEFAULT), description="What it is told of; default: the three ways to end.")


class EndpointUpdate(_Body):
    """What is to change; what is left out stays."""

    name: Name | None = None
    url: str | None = Field(None, description="What is still owed goes there too.")
    event_types: EventTypes | None = Field(None, description="All of them, not only the new ones.")
    enabled: bool | None = Field(None, description="true after it was ended by a 410; false to send nothing more.")


class Rotate(_Body):
    """How a secret is rotated."""

    keep_old_secret_active_for_24_hours: bool = Field(False, description="Whether both sign for a day.")


class TestCreate(_Body):
    """Which sample is sent."""

    __test__ = False

    event_type: EventType


class Endpoint(BaseModel):
    """A receiver of a project's events."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str | None
    disabled_at: int | None
    disabled_reason: str | None


class EndpointWithSecret(Endpoint):
    """The same with its secret: shown when it is made, and never again."""

    signing_secret: str


class EndpointPage(Page):
    """Endpoints, newest first."""

    data: list[Endpoint]


class EndpointDeleted(BaseModel):
    """An endpoint that is gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class TestResult(BaseModel):
    """What an endpoint answered to a sample."""

    __test__ = False

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    event_type: str
    status_code: int
    success: Literal[True] = True
    webhook_endpoint_id: str


class EventTypeList(BaseModel):
    """What endpoints and callbacks can be told of."""

    object: Literal["list"] = "list"
    data: list[str]


class Secret(BaseModel):
    """The secret that signs the callbacks of a project's jobs."""

    object: Literal["webhook_secret"] = "webhook_secret"
    secret: str
    also_valid: int = Field(description="Older secrets that still sign.")


class Attempt(BaseModel):
    """One try of a delivery."""

    object: Literal["webhook_delivery.attempt"] = "webhook_delivery.attempt"
    id: str
    attempt: int = Field(description="Counted since the delivery was last asked for.")
    created_at: int
    response_status: int | None = Field(description="null without an answer.")
    error: str | None = Field(description="Why it counts as failed.")
    latency_ms: int
    response_head: str | None = Field(description="The first KiB of the answer.")


class Delivery(BaseModel):
    """One event owed to one receiver."""

    object: Literal["webhook_delivery"] = "webhook_delivery"
    id: str
    created_at: int
    event_id: str = Field(description="The webhook-id header, the same on every attempt.")
    type: str
    job_id: str | None
    endpoint_id: str | None = Field(description="null for the job's callback_url.")
    url: str
    status: str = Field(description="pending, delivered or dead.")
    finished_at: int | None
    next_attempt_at: int | None
    waiting: str | None = Field(description="Why nothing is sent although it is due.")
    attempts: list[Attempt] = Field(description="Oldest first.")


class DeliveryWithPayload(Delivery):
    """The same with what is sent."""

    payload: dict[str, Any]


class DeliveryPage(Page):
    """Deliveries, newest first."""

    data: list[Delivery]


def endpoint(row: EndpointRow, secret: str | None) -> dict[str, Any]:
    """The fields of an endpoint; secret: its newest, of which only the end is shown."""
    return {
        "id": row.id,
        "created_at": int(row.created_at.timestamp()),
        "updated_at": int(row.updated_at.timestamp()),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": f"whsec_…{secret[-4:]}" if secret else None,
        "disabled_at": _seconds(row.disabled_at),
        "disabled_reason": row.disabled_reason,
    }


def delivery(row: DeliveryRow, attempts: list[AttemptRow], held_until: datetime | None) -> dict[str, Any]:
    """The fields of a delivery; held_until: of the open breaker of its host."""
    pending = row.status == "pending"
    held = held_until if pending else None
    return {
        "id": row.id,
        "created_at": int(row.created_at.timestamp()),
        "event_id": row.event_id,
        "type": row.type,
        "job_id": row.job_id,
        "endpoint_id": row.endpoint_id,
        "url": row.url,
        "status": row.status,
        "finished_at": _seconds(row.finished_at),
        "next_attempt_at": int(max(row.next_attempt_at, held or row.next_attempt_at).timestamp()) if pending else None,
        "waiting": f"host breaker of {row.host} until {held:%Y-%m-%dT%H:%M:%SZ}" if held else None,
        "attempts": [_attempt(one) for one in attempts],
    }


def _attempt(row: AttemptRow) -> Attempt:
    return Attempt(
        id=row.id, attempt=row.attempt, created_at=int(row.created_at.timestamp()), error=row.error,
        response_status=row.response_status, latency_ms=row.latency_ms, response_head=row.response_head,
    )  # fmt: skip


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
