"""Structured logs, and the outermost room of a request: its id, its log line, its last resort.

A line holds request id, method, path, status, milliseconds and project; never a body, a header or a query string.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError
from app.jobs.redact import Redactor
from app.settings import Settings

log = structlog.get_logger("api")

REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
QUIET = ("/healthz", "/readyz")


def configure(settings: Settings) -> None:
    """Send every log line, the libraries' too, through one renderer to stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = settings.log_format == "console"
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    formatter = Redacting(Redactor.of(settings), foreign_pre_chain=shared, processors=[strip, *last])
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("botocore", "boto3", "urllib3", "httpx", "httpcore", "asyncio", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class Redacting(structlog.stdlib.ProcessorFormatter):
    """Takes secrets out of whole lines, tracebacks and the libraries' messages included.

    Args:
        redactor: Knows what is secret.
    """

    def __init__(self, redactor: Redactor, **given: Any) -> None:
        super().__init__(**given)
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = super().format(record).encode("utf-8", "replace")
        return self._redactor.redacted(line).decode("utf-8", "replace")


class RequestScope:
    """ASGI: gives each request an id, puts it and the security headers on the answer, writes one line, catches what nobody caught."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _mark(MutableHeaders(scope=message), request_id)
            await send(message)

        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                await self.app(scope, receive, send_marked)
        except Exception as problem:
            gone = isinstance(problem, ClientDisconnect)
            if not gone:
                log.error("unhandled_error", request_id=request_id, path=quote(scope["path"]), exc_info=problem)
            if status == 0 and not gone:
                await _internal_error(request_id)(scope, receive, send_marked)
        finally:
            _line(scope, request_id, status, began)


def _mark(headers: MutableHeaders, request_id: str) -> None:
    headers["x-request-id"] = request_id
    if "etag" in headers:  # whoever keeps it asks each time whether it still holds
        headers.setdefault("cache-control", "private, no-cache")
    for name, value in SECURITY.items():
        headers.setdefault(name, value)


def _internal_error(request_id: str) -> JSONResponse:
    error = ApiError(
        f"The service failed on this request ({request_id}). Its log says more under that id.", code="internal_error"
    )
    return JSONResponse(error.body(), status_code=500)


def _line(scope: Scope, request_id: str, status: int, began: float) -> None:
    level = logging.DEBUG if scope["path"] in QUIET and status < 400 else logging.INFO
    log.log(
        level,
        "request",
        request_id=request_id,
        method=scope["method"],
        path=quote(scope["path"], safe="/:@"),
        status=status or "hung_up",
        ms=round((time.monotonic() - began) * 1000, 1),
        project=scope["state"].get("project"),
    )
