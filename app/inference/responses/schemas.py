"""The body of a request to /v1/responses, and what is answered, in the shapes the official clients parse."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.inference.schemas import ModelName


class ResponseCreate(BaseModel):
    """OpenAI's request for a response, as far as it is about text."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "input": "What is a fine-tuned model?",
                "max_output_tokens": 64,
                "temperature": 0,
            }
        },
    )

    model: ModelName
    input: str | list[dict[str, Any]] = Field(
        description="A text, or messages: `role` (system, developer, user, assistant) and `content`, a text or parts of text.",
        min_length=1,
    )
    instructions: str | None = Field(
        None, description="A system message before all others; not carried over to the next response."
    )
    max_output_tokens: int | None = Field(None, ge=1, description="Tokens of the answer at most.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="Nucleus sampling. Default 1.")
    stream: bool | None = Field(None, description="Server-sent events, from response.created to response.completed.")
    store: bool | None = Field(
        None, description="Keep the response for a while, so that it can be had again and gone on from. Default true."
    )
    previous_response_id: str | None = Field(
        None, description="Go on from a response that was kept.", max_length=128, pattern=r"^[A-Za-z0-9_-]+$"
    )
    metadata: dict[str, str] | None = Field(None, description="Kept with the response.", max_length=16)
    user: str | None = Field(None, max_length=512)


class OutputText(BaseModel):
    """What was answered."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    """The one item of an output."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputDetails(BaseModel):
    """Of the tokens read."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(BaseModel):
    """Of the tokens written."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """In tokens."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(BaseModel):
    """Why there is no answer."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class ModelResponse(BaseModel):
    """OpenAI's response object."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    background: bool = False
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool = True
    previous_response_id: str | None
    reasoning: dict[str, None] = {"effort": None, "summary": None}
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: dict[str, Any] = {"format": {"type": "text"}}
    tool_choice: Literal["auto"] = "auto"
    tools: list[Any] = []
    top_logprobs: int = 0
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None
    user: str | None


class ResponseDeleted(BaseModel):
    """A response that is gone."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputItem(BaseModel):
    """One message a response was made of."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    status: Literal["completed"] = "completed"
    content: list[dict[str, Any]]


class InputItems(BaseModel):
    """A page of them."""

    object: Literal["list"] = "list"
    data: list[InputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
