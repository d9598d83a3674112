"""The HTTP service: routes, layers, documentation, and the process that serves them. Opens database, S3 and engine for its life."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app import documentation, handlers, health, telemetry
from app.adapters import named as adapters
from app.adapters import routes as models
from app.db import Database
from app.events import routes as events
from app.events.hub import Hub
from app.feedback import routes as feedback
from app.files import routes as files
from app.files import upload_routes
from app.files.storage import Storage
from app.importing import routes as imports
from app.inference import engines
from app.inference import routes as inference
from app.inference.completions import routes as completions
from app.inference.responses import routes as responses
from app.jobs import actions, log_routes
from app.jobs import routes as jobs
from app.jobs.redact import Redactor
from app.limits import BodyLimit
from app.loops import routes as loops
from app.openapi import describe
from app.projects import service as projects
from app.protocol import PatientProtocol
from app.rates import Rates
from app.runs import routes as runs
from app.settings import Settings
from app.webhooks import deliveries as webhook_deliveries
from app.webhooks import routes as webhooks
from app.webhooks.delivery import Sender

CREATING = 8
"""Jobs checked at once: each holds a connection while S3 is asked, and others need the rest."""
GRACE_SECONDS = 10
KEYS_SECONDS = 30.0

log = structlog.get_logger("api")


def create_app(settings: Settings) -> FastAPI:
    """The service for these settings; connections are opened when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.database = Database.from_settings(settings)
        app.state.storage = Storage(settings)
        app.state.engine = engines.from_settings(settings)
        app.state.sender = Sender(settings)
        app.state.creating = asyncio.Semaphore(CREATING)
        app.state.hub = Hub(settings, app.state.database)
        following = asyncio.create_task(app.state.hub.run())
        yield
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await app.state.sender.close()
        await app.state.engine.close()
        app.state.storage.close()
        await app.state.database.close()

    app: FastAPI = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        static_url=documentation.STATIC,
        title="LlamaFlow",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.rates = Rates(settings)
    app.state.redactor = Redactor.of(settings)
    main = (
        jobs,
        actions,
        log_routes,
        events,
        files,
        upload_routes,
        models,
        adapters,
        inference,
        completions,
        responses,
    )
    for room in (*main, feedback, loops, webhooks, webhook_deliveries, imports, health, documentation, runs):
        app.include_router(room.router)
    handlers.register(app)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, stall_seconds=settings.stall_seconds)
    app.add_middleware(telemetry.RequestScope)
    describe(app)
    return app


def serve(settings: Settings) -> int:
    """Serve until a signal.

    Returns:
        1 if the port cannot be had, or the address is public and there is no API key; else 0.
    """
    telemetry.configure(settings)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as problem:
        why = (
            "is in use by another program"
            if problem.errno == errno.EADDRINUSE
            else f"cannot be had: {problem.strerror}"
        )
        print(f"Port {settings.port} of {settings.host} {why}. Set LLAMAFLOW_PORT to another one.", file=sys.stderr)
        return 1
    if not _is_loopback(listener):
        if refusal := asyncio.run(_why_not_public(settings)):
            listener.close()
            print(refusal, file=sys.stderr)
            return 1
        log.warning(
            "public", message="Keys travel in clear text here: put a proxy with TLS in front, see docs/security.md"
        )
    log.info("serving", url=f"http://{settings.host}:{listener.getsockname()[1]}")
    server = Server(config(create_app(settings), settings))
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again after it has stopped in good order
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


async def _why_not_public(settings: Settings) -> str | None:
    """Why the service must not be reached from other machines yet; None if it may. Waits for a database that is starting."""
    database = Database.from_settings(settings, pool_size=1)
    deadline = time.monotonic() + KEYS_SECONDS
    try:
        while True:
            try:
                async with database.transaction() as db:
                    locked = await projects.is_locked(db)
                break
            except (DBAPIError, PoolTimeout, OSError) as problem:
                if time.monotonic() > deadline:
                    return (
                        f"{settings.host} can be reached from other machines, and whether there is an API key is not known: "
                        f"the database does not answer ({type(problem).__name__}). Start it, or set LLAMAFLOW_HOST=127.0.0.1."
                    )
                await asyncio.sleep(1)
    finally:
        await database.close()
    return (
        None
        if locked
        else (
            f"{settings.host} can be reached from other machines, and there is no API key yet. Make one first: "
            "llamaflow keys create; or set LLAMAFLOW_HOST=127.0.0.1."
        )
    )


class Server(uvicorn.Server):
    """uvicorn, but live streams are told to end when it stops: they would hold it for GRACE_SECONDS, and clients resume."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop in good order."""
        hub: Hub | None = getattr(self.config.app.state, "hub", None)  # type: ignore[union-attr]
        if hub is not None:
            hub.stop()
        await super().shutdown(sockets)


def config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves `app`. Forwarded addresses are believed of the proxies that settings name, and of nobody else."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=settings.proxies,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
