"""/internal/runs: what the training of a run may do where it shares no disk with a worker. Not in the API's document.

Opened by the run's token alone, and by it only for the run's own job: no id of anything stands in a request.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials

from app.auth import bearer, key_hash
from app.db import Database, Session
from app.errors import Unauthenticated, Unavailable
from app.files.storage import Storage
from app.rates import Rates
from app.runs import leases, lines, mirror, schemas, tokens
from app.runs.tokens import Held
from app.settings import Settings

router = APIRouter(prefix="/internal/runs", include_in_schema=False)


async def _authenticate(
    request: Request, db: Session, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)], alone: bool
) -> Held:
    if given is None or not given.credentials:
        raise Unauthenticated("There is no run token.", code="missing_run_token")
    rates: Rates = request.app.state.rates
    address, hashed = request.client.host if request.client else "?", key_hash(given.credentials)
    rates.may_try(address, hashed)
    try:
        held = await tokens.find(db, given.credentials, alone=alone)
    except Unauthenticated:
        rates.failed(address)
        raise
    rates.proved(hashed)
    return held


async def _run(
    request: Request, db: Session, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Held:
    return await _authenticate(request, db, given, alone=False)


async def _run_alone(
    request: Request, db: Session, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Held:
    return await _authenticate(request, db, given, alone=True)


OfRun = Annotated[Held, Depends(_run)]


@router.put("/lease")
async def take_lease(
    body: schemas.Take, held: Annotated[Held, Depends(_run_alone)], db: Session, request: Request
) -> schemas.Lease:
    """Become or stay the one who trains. The heartbeat of a training: it renews the token, and brings what is asked of it."""
    settings: Settings = request.app.state.settings
    seconds = settings.train_lease_seconds
    ours = await leases.take(db, held.job.id, body.train_key, body.holder, seconds, renew=body.renew)
    await tokens.renew(db, held.token.run_id, settings.run_token_seconds)
    return schemas.Lease.model_validate({"held": ours, "seconds": seconds, "intent": held.token.intent})


@router.post("/lease/release", status_code=204)
async def release_lease(body: schemas.Release, held: OfRun, db: Session) -> None:
    """Let the next one train."""
    await leases.release(db, held.job.id, body.holder)


@router.post("/lines")
async def append_lines(body: schemas.Lines, held: OfRun, db: Session) -> schemas.End:
    """Take lines of progress.jsonl; sent twice they are there once."""
    await leases.insist(db, held.job.id, body.holder)
    return schemas.End(end=await lines.append(db, held.job.id, body.start, body.text.encode()))


@router.get("/lines")
async def read_lines(held: OfRun, db: Session, start: Annotated[int, Query(ge=0, le=1 << 40)] = 0) -> schemas.Text:
    """progress.jsonl from byte `start` on, a page of it."""
    return schemas.Text(text=(await lines.read(db, held.job.id, start)).decode())


@router.post("/objects")
async def presign(body: schemas.Objects, held: OfRun, db: Session, request: Request) -> schemas.Addresses:
    """Addresses for a while: to read objects of the job's mirror, or, for who trains, to write them."""
    storage: Storage = request.app.state.storage
    if body.method == "get":
        return schemas.Addresses(urls=mirror.reading(storage, held.job, list(body.objects)))
    await leases.insist(db, held.job.id, body.holder)
    return schemas.Addresses(urls=mirror.writing(storage, held.job, list(body.objects)))


@router.get("/mirror")
async def read_record(request: Request) -> schemas.Recorded:
    """What the job's mirror holds."""
    database: Database = request.app.state.database
    async with database.transaction() as db:
        held = await _authenticate(request, db, await bearer(request), alone=False)
    return schemas.Recorded(mirror=await mirror.recorded(request.app.state.storage, held.job))


@router.put("/mirror", status_code=204)
async def write_record(body: schemas.Record, request: Request) -> None:
    """Say what the mirror holds now. While this is written, nobody else can become the one who trains."""
    database: Database = request.app.state.database
    storage: Storage = request.app.state.storage
    try:
        async with database.transaction() as db:
            held = await _authenticate(request, db, await bearer(request), alone=False)
            await leases.insist(db, held.job.id, body.holder)
            doomed = await mirror.record(storage, held.job, body.mirror)
    except TimeoutError as problem:
        raise Unavailable("S3 does not answer.", code="s3_unavailable", retry_after=5) from problem
    await mirror.forget(storage, doomed)
