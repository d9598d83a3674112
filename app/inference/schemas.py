"""The body of a chat request, and its answer, as documented. What the engine honours beyond it is passed on; what it does not, it refuses by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ModelName = Annotated[
    str,
    Field(
        description="A base of the models file, an `ft:` model, an adapter's name (its promoted version), "
        "a checkpoint, or several adapters: `schema+kpi`.",
        max_length=1024,
        pattern=r"^[^\x00-\x1f\x7f]+$",
    ),
]
"""What a request may be asked of."""


class ChatCompletionCreate(BaseModel):
    """OpenAI's chat completion request."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
                "messages": [{"role": "user", "content": "What is a fine-tuned model?"}],
                "max_tokens": 64,
                "temperature": 0,
            }
        },
    )

    model: ModelName
    messages: list[dict[str, Any]] = Field(
        description="Turns: `role` (system, developer, user, assistant) and `content`, a text or parts of type text.",
        min_length=1,
    )
    stream: bool | None = Field(None, description="Server-sent events, a token at a time, ending with `data: [DONE]`.")
    stream_options: dict[str, Any] | None = Field(None, description="`include_usage`: one more chunk with the usage.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy. Default 1.")
    top_p: float | None = Field(None, ge=0, le=1, description="Nucleus sampling. Default 1.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens of an answer at most.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens; wins over it.")
    stop: str | list[str] | None = Field(None, description="Up to four texts that end an answer; not part of it.")
    n: int | None = Field(None, ge=1, le=8, description="Answers to give, 1-8.")
    seed: int | None = Field(None, description="The same seed gives the same answer.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None


class Choice(BaseModel):
    """One of the answers, and why it ended: of itself or at a stop text (stop), or at max_tokens (length)."""

    index: int
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """In tokens, over all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """OpenAI's chat completion; a stream has `chat.completion.chunk` objects instead."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | None = Field(None, description="Equal ones answer equally to equal seeds.")
    llamaflow: dict[str, Any] | None = Field(
        None,
        description="Of a combination: its `method`, and with `route` the `adapter` chosen (null: the base) and its `score`.",
    )
