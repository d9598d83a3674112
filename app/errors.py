"""Requests that cannot be served: one tree of exceptions, one handler that renders them.

    ApiError
    ├── BadRequest         400  invalid_request_error
    ├── Unauthenticated    401  authentication_error
    ├── Forbidden          403  permission_error
    ├── NotFound           404  not_found_error
    ├── MethodNotAllowed   405  invalid_request_error
    ├── Stalled            408  invalid_request_error
    ├── Conflict           409  conflict_error
    ├── TooLarge           413  invalid_request_error
    ├── TooMany            429  rate_limit_error
    ├── HeadTooLarge       431  invalid_request_error
    └── Unavailable        503  server_error

A job that fails is data, not one of these: see finetune/exit_codes.py.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """A request that cannot be served.

    Args:
        message: What a user reads: what is wrong and the way out.
        code: Stable name a client can act on.
        param: The request field it is about, such as `hyperparameters.n_epochs`.
        retry_after: Seconds (1-60) after which the same request may succeed.
        errors: More of the same kind, such as one entry a line of the dataset.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        errors: list[dict[str, Any]] | None = None,
    ) -> None:
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.errors = errors
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The response body."""
        error: dict[str, Any] = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        if self.errors:
            error["errors"] = self.errors
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers that tell the official clients whether and when to try again."""
        if self.retry_after is not None:
            return {"retry-after": str(min(60, max(1, self.retry_after)))}
        return {"x-should-retry": "false"} if self.status == 409 else {}


class BadRequest(ApiError):
    """The request is wrong as it stands."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(ApiError):
    """No key, or one that is not known."""

    status = 401
    type = "authentication_error"


class Forbidden(ApiError):
    """The key is known and may not do this."""

    status = 403
    type = "permission_error"


class NotFound(ApiError):
    """Not there, or not this project's: the two are not told apart."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(ApiError):
    """The route exists for other methods."""

    status = 405
    type = "invalid_request_error"


class Stalled(ApiError):
    """The client stopped sending."""

    status = 408
    type = "invalid_request_error"


class Conflict(ApiError):
    """At odds with what is there; a retry will not cure it."""

    status = 409
    type = "conflict_error"


class TooLarge(ApiError):
    """Over a limit of size."""

    status = 413
    type = "invalid_request_error"


class TooMany(ApiError):
    """Over a limit of rate or queue."""

    status = 429
    type = "rate_limit_error"


class HeadTooLarge(ApiError):
    """The headers are over what a head may have."""

    status = 431
    type = "invalid_request_error"


class Unavailable(ApiError):
    """Something the service needs does not answer."""

    status = 503
    type = "server_error"
