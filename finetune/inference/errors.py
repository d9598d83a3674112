"""What the engine answers when it cannot serve a request: OpenAI's error shape, and what a StepError means over HTTP.

Standard library only. The service has its own tree (app/errors.py), which this package may not know.
"""

from __future__ import annotations

from typing import Any

from finetune.exit_codes import StepError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
STATUS = {
    "model_not_found": 404,
    "file_not_found": 404,
    "manifest_mismatch": 409,
    "model_gated": 403,
    "access_denied": 403,
    "s3_unavailable": 503,
    "model_unavailable": 503,
    "out_of_memory": 503,
    "unsupported_model": 400,
    "unsupported_operation": 400,
}
"""HTTP status of a step's error code; 500 for those not named."""


class EngineError(Exception):
    """A request that cannot be served.

    Args:
        status: HTTP status.
        message: What a user reads.
        code: Stable name a client can act on.
        param: The request field it is about.
        retry_after: Seconds (1-60) after which the same request may succeed.
    """

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The response body, or the data of an error in a stream."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that tell the official clients whether and when to try again."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        return {"x-should-retry": "false"} if self.status in (409, 500) else {}


def bad(message: str, param: str | None, code: str = "invalid_value") -> EngineError:
    """A 400 about one field of the request."""
    return EngineError(400, message, code=code, param=param)


def of_step(problem: StepError) -> EngineError:
    """A failure to bring a base or an adapter, as an answer."""
    status = STATUS.get(problem.code.name, 500)
    retry = 5 if status == 503 else None
    return EngineError(
        status, problem.message, code=problem.code.name, param=problem.param or "model", retry_after=retry
    )
