"""The HTTP service: routes, layers, documentation, and the process that serves them. Opens database, S3 and engine for its life."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import handlers, health, telemetry
from app.adapters import routes as adapters
from app.db import Database
from app.events import routes as events
from app.files import routes as files
from app.files.storage import Storage
from app.inference import engines
from app.inference import routes as inference
from app.jobs import actions
from app.jobs import routes as jobs
from app.limits import BodyLimit
from app.openapi import describe
from app.protocol import PatientProtocol
from app.rates import Rates
from app.settings import Settings

CREATING = 8
"""Jobs checked at once: each holds a connection while S3 is asked, and others need the rest."""
GRACE_SECONDS = 10

log = structlog.get_logger("api")


def create_app(settings: Settings) -> FastAPI:
    """The service for these settings; connections are opened when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.database = Database.from_settings(settings)
        app.state.storage = Storage(settings)
        app.state.engine = engines.from_settings(settings)
        app.state.creating = asyncio.Semaphore(CREATING)
        yield
        await app.state.engine.close()
        app.state.storage.close()
        await app.state.database.close()

    app: FastAPI = FastAPIOffline(
        redoc_url=None,
        title="LlamaFlow",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,
        swagger_ui_parameters={"persistAuthorization": True, "defaultModelsExpandDepth": 0},
    )
    app.state.settings = settings
    app.state.rates = Rates(settings)
    for room in (jobs, actions, events, files, adapters, inference, health):
        app.include_router(room.router)
    handlers.register(app)
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes, stall_seconds=settings.stall_seconds)
    app.add_middleware(telemetry.RequestScope)
    describe(app)
    return app


def serve(settings: Settings) -> int:
    """Serve until a signal.

    Returns:
        1 if the port cannot be had, else 0.
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
    log.info("serving", url=f"http://{settings.host}:{listener.getsockname()[1]}")
    server = uvicorn.Server(config(create_app(settings), settings))
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again after it has stopped in good order
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0


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
