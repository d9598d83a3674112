"""The body of a request to /v1/completions, and what is answered, in the shapes the official clients parse."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.errors import BadRequest
from app.inference.schemas import ModelName, Usage

MAX_PROMPTS = 16
DEFAULT_TOKENS = 16
"""Tokens of a completion where the request does not say: OpenAI's own number."""

Text = Annotated[str, Field(min_length=1)]


class CompletionCreate(BaseModel):
    """OpenAI's request for completions of texts."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "prompt": "The capital of France is",
                "max_tokens": 16,
                "temperature": 0,
            }
        },
    )

    model: ModelName
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)] = Field(
        description="A text, or up to 16. No template is laid over it, and special tokens written in it count as such."
    )
    max_tokens: int | None = Field(None, ge=1, description=f"Tokens of a completion at most. Default {DEFAULT_TOKENS}.")
    n: int | None = Field(None, ge=1, le=8, description="Completions of each prompt, 1-8.")
    best_of: int | None = Field(None, ge=1, le=8, description="Only as many as `n`: none is thrown away.")
    echo: bool | None = Field(None, description="Begin each completion with its prompt.")
    stop: str | list[str] | None = Field(None, description="Up to four texts that end a completion; not part of it.")
    stream: bool | None = Field(None, description="Server-sent events, ending with `data: [DONE]`.")
    stream_options: dict[str, Any] | None = Field(None, description="`include_usage`: one more chunk with the usage.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="Nucleus sampling. Default 1.")
    seed: int | None = Field(None, description="The same seed gives the same completion.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)

    @model_validator(mode="before")
    @classmethod
    def _no_ids(cls, data: Any) -> Any:
        prompt = data.get("prompt") if isinstance(data, dict) else None
        if isinstance(prompt, list) and any(isinstance(each, int | list) for each in prompt):
            message = "Token ids are not taken as a prompt here: the model decides how text is cut. Send the text."
            raise BadRequest(message, code="unsupported_parameter", param="prompt")
        return data

    @property
    def prompts(self) -> list[str]:
        """One or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def count(self) -> int:
        """Completions of each prompt."""
        return self.n or 1


class CompletionChoice(BaseModel):
    """One completion, and why it ended: of itself or at a stop text (stop), or at max_tokens (length)."""

    index: int = Field(description="Those of the first prompt come first.")
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """OpenAI's completion; the chunks of a stream have the same shape, `finish_reason` null until a text ends."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str | None = Field(None, description="Equal ones answer equally to equal seeds.")
