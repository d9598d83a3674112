"""The only renderer of errors: ours, the framework's and the database's all become `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import json
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from app import unoffered
from app.db import is_outage, unavailable
from app.errors import (
    ApiError,
    BadRequest,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from app.validation import refuse
from finetune.config import nearest

log = structlog.get_logger("api")


def register(app: FastAPI) -> None:
    """Have `app` render every error here."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(PoolTimeout, _busy)
    app.add_exception_handler(UnicodeEncodeError, _unstorable)


class ErrorAnswer(JSONResponse):
    """JSON that can be sent whatever a sentence quotes, halves of surrogate pairs included."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def render(error: ApiError) -> JSONResponse:
    """The answer for an error."""
    headers = error.headers()
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return ErrorAnswer(error.body(), status_code=error.status, headers=headers)


async def _api_error(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, ApiError)  # noqa: S101  registered for it alone
    return render(problem)


async def _validation(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, RequestValidationError)  # noqa: S101  registered for it alone
    return render(refuse(list(problem.errors()), problem.body, _body_model(request)))


async def _http(request: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, HTTPException)  # noqa: S101  registered for it alone
    answer = render(_of_framework(request, problem))
    answer.headers.update({name.lower(): value for name, value in (problem.headers or {}).items()})
    return answer


async def _database(request: Request, problem: Exception) -> JSONResponse:
    if isinstance(problem, DataError):
        return await _unstorable(request, problem)
    if not is_outage(problem):
        raise problem
    log.warning("database_away", error=type(problem).__name__)
    return render(unavailable(problem))


async def _unstorable(request: Request, problem: Exception) -> JSONResponse:
    message = "The request holds text that cannot be stored, such as a NUL character."
    return render(BadRequest(message, code="invalid_value"))


async def _busy(request: Request, problem: Exception) -> JSONResponse:
    return render(Unavailable("The service is busy. Try again in a moment.", code="overloaded", retry_after=2))


def _of_framework(request: Request, problem: HTTPException) -> ApiError:
    method, path = request.method, request.url.path
    if problem.status_code in (404, 405) and (said := unoffered.sentence(method, path)):
        return BadRequest(said, code="unsupported_operation")
    if problem.status_code == 404:
        near = nearest(path.rstrip("/"), _paths(request.app))
        hint = f" Did you mean {near}?" if near else " /docs lists what there is."
        return NotFound(f"There is no {method} {path} here.{hint}", code="unknown_url")
    if problem.status_code == 405:
        allowed = (problem.headers or {}).get("Allow", "")
        return MethodNotAllowed(
            f"{path} does not take {method}" + (f", only {allowed}." if allowed else "."), code="method_not_allowed"
        )
    if problem.detail == "There was an error parsing the body":
        return BadRequest(
            "The body is no valid JSON: it is no UTF-8 text, or nested far too deeply.", code="invalid_json"
        )
    known: dict[int, type[ApiError]] = {
        400: BadRequest, 401: Unauthenticated, 403: Forbidden, 413: TooLarge, 503: Unavailable,
    }  # fmt: skip
    return known.get(problem.status_code, BadRequest if problem.status_code < 500 else ApiError)(
        f"{problem.detail}.", code="invalid_request" if problem.status_code < 500 else "internal_error"
    )


def _paths(app: Any) -> list[str]:
    return [path for path in app.openapi()["paths"] if "{" not in path]


def _body_model(request: Request) -> Any:
    """The model of the route's body, for names and sentences; None where there is none."""
    route = request.scope.get("route")
    field = getattr(route, "body_field", None)
    return field.field_info.annotation if field is not None else None
