"""What an engine answered, told as a response."""

from __future__ import annotations

import time
from typing import Any, Literal

from app.inference.responses.schemas import (
    IncompleteDetails,
    ModelResponse,
    OutputMessage,
    OutputText,
    ResponseCreate,
    ResponseFailure,
    ResponseUsage,
)
from app.models import new_id


class Answer:
    """A response in the making: one id, one message with an id of its own, from the first event to the last.

    Args:
        body: The request.
        stored: Whether it will be kept.
    """

    def __init__(self, body: ResponseCreate, *, stored: bool) -> None:
        self.id, self.item_id = new_id("resp_"), new_id("msg_")
        self._body, self._stored, self._created = body, stored, int(time.time())

    def begun(self) -> ModelResponse:
        """The response while nothing of it is there."""
        return self._response("in_progress", [], None)

    def ended(self, text: str, reason: str | None, usage: dict[str, Any] | None) -> ModelResponse:
        """The whole response.

        Args:
            text: What was answered.
            reason: `finish_reason` of the chat completion.
            usage: Its usage.
        """
        short = reason == "length"
        status: Literal["incomplete", "completed"] = "incomplete" if short else "completed"
        counted = usage and ResponseUsage(
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
            total_tokens=usage["total_tokens"],
        )
        made = self._response(status, [self.message(text, status)], counted or None)
        return made.model_copy(
            update={
                "completed_at": None if short else int(time.time()),
                "incomplete_details": IncompleteDetails(reason="max_output_tokens") if short else None,
            }
        )

    def failed(self, message: str) -> ModelResponse:
        """The response when the engine failed on the way."""
        return self._response("failed", [], None).model_copy(
            update={"error": ResponseFailure(code="server_error", message=message)}
        )

    def message(self, text: str | None, status: Literal["in_progress", "completed", "incomplete"]) -> OutputMessage:
        """The one item of the output; None: without content as yet."""
        return OutputMessage(id=self.item_id, status=status, content=[] if text is None else [OutputText(text=text)])

    def _response(self, status: Any, output: list[OutputMessage], usage: ResponseUsage | None) -> ModelResponse:
        body = self._body
        return ModelResponse(
            id=self.id, created_at=self._created, status=status, instructions=body.instructions,
            max_output_tokens=body.max_output_tokens, metadata=body.metadata or {}, model=body.model, output=output,
            previous_response_id=body.previous_response_id, store=self._stored,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p, usage=usage, user=body.user,
        )  # fmt: skip
