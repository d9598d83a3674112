"""/v1/webhook_endpoints, /v1/webhook_event_types, /v1/webhook_secret: who is told of a project's events, and how it is signed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request

from app.auth import Admin, Reader, Writer
from app.db import Database, Session
from app.errors import NotFound
from app.pages import After, limit, page
from app.settings import Settings
from app.webhooks import samples, schemas, service, signing, target
from app.webhooks.event_types import EVENT_TYPES

router = APIRouter(prefix="/v1", tags=["Webhooks"])

RetryCount = Annotated[int, Header(alias="x-stainless-retry-count", include_in_schema=False)]


@router.post("/webhook_endpoints", summary="Create an endpoint", response_model=schemas.EndpointWithSecret)
async def create_endpoint(
    body: schemas.EndpointCreate, caller: Writer, request: Request, retry_count: RetryCount = 0
) -> schemas.EndpointWithSecret:
    """Have a project's events sent somewhere, signed. The secret is shown in this answer only."""
    await _check(request, body.url)
    database: Database = request.app.state.database
    async with database.transaction() as db:
        row, secret = await service.create(db, caller, body, retried=retry_count > 0)
    return schemas.EndpointWithSecret(**schemas.endpoint(row, secret), signing_secret=secret)


@router.get("/webhook_endpoints", summary="List endpoints", response_model=schemas.EndpointPage)
async def list_endpoints(caller: Reader, db: Session, after: After = None, limit: int = limit(20, 100)) -> Any:
    """The project's endpoints, newest first."""
    rows, more = await service.listed(db, caller, after=after, limit=limit)
    secrets = await signing.newest(db, [row.id for row in rows])
    return page([schemas.Endpoint(**schemas.endpoint(row, secrets.get(row.id))) for row in rows], more)


@router.get("/webhook_endpoints/{endpoint_id}", summary="Get an endpoint", response_model=schemas.Endpoint)
async def get_endpoint(endpoint_id: str, caller: Reader, db: Session) -> schemas.Endpoint:
    """One endpoint, without its secret."""
    row = await service.find(db, caller, endpoint_id)
    return schemas.Endpoint(**schemas.endpoint(row, (await signing.newest(db, [row.id])).get(row.id)))


@router.patch("/webhook_endpoints/{endpoint_id}", include_in_schema=False, response_model=schemas.Endpoint)
@router.post("/webhook_endpoints/{endpoint_id}", summary="Change an endpoint", response_model=schemas.Endpoint)
async def change_endpoint(
    endpoint_id: str, body: schemas.EndpointUpdate, caller: Writer, request: Request
) -> schemas.Endpoint:
    """Change what is named in the body. A new URL lets an endpoint that was ended by a 410 be told again."""
    if body.url is not None:
        await _check(request, body.url)
    database: Database = request.app.state.database
    async with database.transaction() as db:
        row = await service.change(db, caller, endpoint_id, body)
        return schemas.Endpoint(**schemas.endpoint(row, (await signing.newest(db, [row.id])).get(row.id)))


@router.delete("/webhook_endpoints/{endpoint_id}", summary="Delete an endpoint", response_model=schemas.EndpointDeleted)
async def delete_endpoint(endpoint_id: str, caller: Writer, db: Session) -> schemas.EndpointDeleted:
    """Send nothing more there. What it was told stays in the log."""
    await service.delete(db, caller, endpoint_id)
    return schemas.EndpointDeleted(id=endpoint_id)


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    summary="Rotate an endpoint's secret",
    response_model=schemas.EndpointWithSecret,
)
async def rotate_endpoint_secret(
    endpoint_id: str, caller: Writer, db: Session, body: schemas.Rotate | None = None
) -> schemas.EndpointWithSecret:
    """Sign with a new secret, shown in this answer only; the old one ends now, or signs beside it for 24 hours."""
    keep = body is not None and body.keep_old_secret_active_for_24_hours
    row, secret = await service.rotate(db, caller, endpoint_id, keep_old=keep)
    return schemas.EndpointWithSecret(**schemas.endpoint(row, secret), signing_secret=secret)


@router.post("/webhook_endpoints/{endpoint_id}/test", summary="Test an endpoint", response_model=schemas.TestResult)
async def test_endpoint(
    endpoint_id: str, body: schemas.TestCreate, caller: Writer, request: Request
) -> schemas.TestResult:
    """Send a made-up event there now, once, and tell what it answers. It is not kept in the log."""
    database: Database = request.app.state.database
    async with database.transaction() as db:
        row = await service.find(db, caller, endpoint_id)
        sample = await samples.make(db, row, body.event_type)
    status = await samples.send(request.app.state.sender, row.url, sample)
    return schemas.TestResult(event_type=body.event_type, status_code=status, webhook_endpoint_id=row.id)


@router.get("/webhook_event_types", summary="List event types", response_model=schemas.EventTypeList)
async def list_event_types(caller: Reader) -> schemas.EventTypeList:
    """What an endpoint, or `callback_events` of a job, can name."""
    return schemas.EventTypeList(data=list(EVENT_TYPES))


@router.get("/webhook_secret", summary="Show the callbacks' secret", response_model=schemas.Secret)
async def get_secret(caller: Admin, db: Session) -> schemas.Secret:
    """The secret that signs the callbacks of the project's jobs. Needs a key with the scope admin."""
    valid = await signing.valid(db, caller.project_id, None)
    if not valid:
        raise NotFound(
            "The project has no secret yet; POST /v1/webhook_secret/rotate makes one.", code="no_webhook_secret"
        )
    return schemas.Secret(secret=valid[0], also_valid=len(valid) - 1)


@router.post("/webhook_secret/rotate", summary="Rotate the callbacks' secret", response_model=schemas.Secret)
async def rotate_secret(caller: Admin, db: Session) -> schemas.Secret:
    """Sign callbacks with a new secret; the old one signs beside it for 24 hours. Needs a key with the scope admin."""
    secret = await signing.rotate(db, caller.project_id, None, keep_old=True)
    return schemas.Secret(secret=secret, also_valid=len(await signing.valid(db, caller.project_id, None)) - 1)


async def _check(request: Request, url: str) -> None:
    settings: Settings = request.app.state.settings
    await target.check(url, settings.webhook_allow, "url")
