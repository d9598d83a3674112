"""A request for a response, told as a chat request. What would change the answer and is not honoured is refused by name."""

from __future__ import annotations

from typing import Any

from app.errors import BadRequest
from app.inference.responses.schemas import ResponseCreate

Messages = list[dict[str, str]]

ROLES = ("system", "developer", "user", "assistant")
TEXTS = ("input_text", "output_text", "text")

IGNORED = {
    "max_tool_calls", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "stream_options",
}  # fmt: skip
"""Parameters that do not change an answer of text."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "reasoning": ({}, {"effort": "none"}),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
"""Values of parameters not honoured that ask for nothing."""

NOT_GIVEN = {"message.output_text.logprobs"}
"""Of `include`: what would be missing. All else belongs to tools and reasoning, of which there is none."""


def messages_of(body: ResponseCreate) -> Messages:
    """The conversation that `input` holds.

    Returns:
        Messages with `role` and `content`, a text.
    Raises:
        BadRequest: A parameter or an item is not supported, or malformed; names it.
    """
    for name, value in (body.model_extra or {}).items():
        if not _asks_for_nothing(name, value):
            raise _unsupported(name)
    if isinstance(body.input, str):
        return [{"role": "user", "content": body.input}]
    found = [message for at, item in enumerate(body.input) if (message := _message(item, f"input[{at}]"))]
    if not found:
        raise BadRequest("input holds no message.", code="invalid_value", param="input")
    return found


def chat_request(body: ResponseCreate, messages: Messages) -> dict[str, Any]:
    """What the engine is asked.

    Args:
        body: The request.
        messages: The whole conversation. Instructions come before it, together with a system message that opens it:
            many a template has a place for one alone.
    """
    turns = list(messages)
    if body.instructions is not None:
        opening = [turns.pop(0)["content"]] if turns and turns[0]["role"] in ("system", "developer") else []
        turns.insert(0, {"role": "system", "content": "\n\n".join([body.instructions, *opening])})
    asked: dict[str, Any] = {"model": body.model, "messages": turns}
    limits = {"max_completion_tokens": body.max_output_tokens, "temperature": body.temperature, "top_p": body.top_p}
    asked |= {name: value for name, value in limits.items() if value is not None}
    if body.stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return asked


def _asks_for_nothing(name: str, value: Any) -> bool:
    if name == "include":
        return value is None or (isinstance(value, list) and not NOT_GIVEN & {str(entry) for entry in value})
    return value is None or name in IGNORED or value in NEUTRAL.get(name, ())


def _unsupported(name: str) -> BadRequest:
    if name in ("tools", "tool_choice"):
        what = "Tools are not offered here: leave `tools` out, or send an empty list."
    else:
        what = f"The parameter {name} is not supported here. Leave it out."
    return BadRequest(what, code="unsupported_parameter", param=name)


def _message(item: dict[str, Any], where: str) -> dict[str, str] | None:
    """One item of `input` as a message; None for what says nothing to a model."""
    kind = item.get("type", "message")
    if kind == "reasoning":
        return None
    if kind != "message":
        raise BadRequest(
            f"{where} is of type {str(kind)[:80]!r}; only messages are understood here.",
            code="unsupported_parameter",
            param=f"{where}.type",
        )
    role = item.get("role")
    if role not in ROLES:
        raise BadRequest(
            f"{where}.role must be one of {', '.join(ROLES)}.", code="invalid_value", param=f"{where}.role"
        )
    return {"role": role, "content": _text(item.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{where} must be a text, or a list of parts of text.", code="invalid_value", param=where)
    texts = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXTS or not isinstance(part.get("text"), str):
            raise BadRequest(
                f"{where}[{at}] must be a part of text ({', '.join(TEXTS)} with `text`), not {str(kind)[:80]!r}.",
                code="invalid_value" if kind in TEXTS or kind is None else "unsupported_parameter",
                param=f"{where}[{at}]",
            )
        texts.append(part["text"])
    return "".join(texts)
