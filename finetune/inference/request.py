"""A chat request as the engine understands it: OpenAI's body, checked, plus `llamaflow`, where the service says what serves it.

A parameter the engine does not honour is refused by name, unless its value asks for nothing. No torch, no HTTP.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from finetune.data.row import Message
from finetune.inference.errors import EngineError, bad
from finetune.steps import ModelSource

MAX_CHOICES = 8
MAX_STOPS = 4

IGNORED = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip
"""OpenAI's parameters that do not change an answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
}
"""Values of parameters not honoured that ask for nothing."""


def _text(content: Any) -> Any:
    """The text of a content given in parts."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"only parts of type text are understood, not {kind!r}")
    return "".join(part["text"] for part in content)


def _well_formed(text: Any) -> Any:
    if isinstance(text, str) and any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("the text is no valid Unicode (a lone surrogate)")
    return text


def _stops(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_well_formed), BeforeValidator(_text)]


class ChatMessage(BaseModel):
    """One turn. `developer` is another word for system."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    def as_message(self) -> Message:
        """The turn as templates know it."""
        return Message("system" if self.role == "developer" else self.role, self.content)


class StreamOptions(BaseModel):
    """`stream_options`. include_obfuscation is taken and not done: the link is the operator's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class AdapterSource(BaseModel):
    """Where an adapter lies: a folder, and the manifest that vouches for its files.

    Attributes:
        id: What the service calls it.
        uri: `s3://bucket/prefix/adapter/` (or `file:///…/` where the engine allows it), with a slash at its end.
        manifest_uri: The manifest, in a folder above or beside.
        manifest_sha256: Of the manifest's bytes, as the service recorded them; None if it does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=512)
    uri: str = Field(pattern=r"^(s3|file)://[^\x00-\x1f\x7f]+/$", max_length=1200)
    manifest_uri: str = Field(pattern=r"^(s3|file)://[^\x00-\x1f\x7f]+/manifest\.json$", max_length=1200)
    manifest_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")


class Member(BaseModel):
    """One adapter of a combination, and the name that answers call it by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=512)
    adapter: AdapterSource


class Combination(BaseModel):
    """Several adapters for one request.

    Attributes:
        members: At least two.
        method: `route`: the whole request goes to one of them, or to the base; `arrow`: each token chooses; None: `route`
            where every member has question vectors, else `arrow`.
        threshold: Of route: the score below which the base answers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: list[Member] = Field(min_length=2, max_length=8)
    method: Literal["route", "arrow"] | None = None
    threshold: float | None = Field(None, ge=-1, le=1)


class Target(BaseModel):
    """`llamaflow`: the base, and what stands on it: an adapter, several, or none.

    Attributes:
        base: Where it comes from.
        adapter: The one adapter.
        combination: Instead of it.
        raw: The one message is the prompt as it is, without a template.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: ModelSource
    adapter: AdapterSource | None = None
    combination: Combination | None = None
    raw: bool = False

    @model_validator(mode="after")
    def _one(self) -> Target:
        if self.adapter is not None and self.combination is not None:
            raise ValueError("either adapter or combination is expected")
        return self


class ChatRequest(BaseModel):
    """A checked request; `limit` tokens an answer at most (None: what the engine gives)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    model: str = Field(min_length=1, max_length=1024)
    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    llamaflow: Target
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    max_completion_tokens: int | None = Field(None, ge=1, strict=True)
    max_tokens: int | None = Field(None, ge=1, strict=True)
    n: int = Field(1, ge=1, le=MAX_CHOICES, strict=True)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, strict=True)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024), BeforeValidator(_well_formed)]],
        BeforeValidator(_stops),
    ] = Field(default_factory=list, max_length=MAX_STOPS)
    stream: bool = Field(False, strict=True)
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)

    @property
    def limit(self) -> int | None:
        """Tokens an answer may have; the newer name wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def question(self) -> str:
        """The last thing the user said."""
        said = [message.content for message in self.messages if message.role == "user"]
        return said[-1] if said else self.messages[-1].content

    def turns(self) -> list[Message]:
        """The conversation as templates know it."""
        return [message.as_message() for message in self.messages]


def parse(body: Any) -> ChatRequest:
    """Check a request.

    Args:
        body: The decoded JSON.
    Raises:
        EngineError: 400: `unsupported_parameter` for what the engine does not do, else `invalid_value`; names the field.
    """
    if not isinstance(body, dict):
        raise bad("The body must be a JSON object.", None)
    given = {key: value for key, value in body.items() if value is not None}
    for name in [key for key in given if key not in ChatRequest.model_fields]:
        if name not in IGNORED and given[name] not in NEUTRAL.get(name, ()):
            raise _unsupported(name, given[name])
        del given[name]
    if "stream_options" in given and not given.get("stream"):
        raise bad("stream_options is only taken together with stream: true.", "stream_options")
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as problem:
        raise _invalid(problem) from None


def _unsupported(name: str, value: Any) -> EngineError:
    shown = f" ({value!r})" if isinstance(value, str | int | float | bool) and len(repr(value)) < 80 else ""
    return bad(f"The parameter {name}{shown} is not supported here. Leave it out.", name, "unsupported_parameter")


def _invalid(problem: ValidationError) -> EngineError:
    first = problem.errors(include_url=False)[0]
    where = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return bad(f"The parameter {where} is not supported here. Leave it out.", where, "unsupported_parameter")
    return bad(f"{where}: {first['msg'].removeprefix('Value error, ')}.", where)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content` of a pydantic location."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")
