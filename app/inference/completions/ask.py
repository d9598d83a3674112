"""Requests for completions told as chat requests, one a prompt, and the answers told as completions."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from app.errors import ApiError, BadRequest
from app.inference.completions.schemas import (
    DEFAULT_TOKENS,
    Completion,
    CompletionChoice,
    CompletionCreate,
)
from app.inference.engines import Engine, Served
from app.inference.schemas import Usage
from app.models import new_id

OWN = {"prompt", "echo", "best_of", "suffix", "logprobs"}
"""Of a request, what a chat request does not have."""
REFUSED = {
    "suffix": "Text is gone on from, not filled in: leave `suffix` out.",
    "logprobs": "Log probabilities are not offered here: leave `logprobs` out.",
}


class Asked:
    """A request in the making: one id, one chat request a prompt.

    Args:
        body: The request.
    Raises:
        BadRequest: What would change the answer and is not honoured; names it.
    """

    def __init__(self, body: CompletionCreate) -> None:
        extra = body.model_extra or {}
        for name, sentence in REFUSED.items():
            if extra.get(name):
                raise BadRequest(sentence, code="unsupported_parameter", param=name)
        if body.best_of not in (None, body.count):
            raise BadRequest(
                "best_of may only be as large as n: every completion made is given.",
                code="unsupported_parameter",
                param="best_of",
            )
        self.body, self.id, self.created = body, new_id("cmpl-"), int(time.time())

    def requests(self) -> list[dict[str, Any]]:
        """What the engine is asked, prompt by prompt."""
        shared = self.body.model_dump(exclude_unset=True, exclude=OWN) | {"n": self.body.count}
        shared["max_tokens"] = self.body.max_tokens or DEFAULT_TOKENS
        if self.body.stream:
            shared["stream_options"] = {**(self.body.stream_options or {}), "include_usage": True}
        return [shared | {"messages": [{"role": "user", "content": prompt}]} for prompt in self.body.prompts]

    def head(self, fingerprint: str | None) -> dict[str, Any]:
        """What every chunk and the whole completion begin with."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, answers: list[dict[str, Any]]) -> Completion:
        """The completion.

        Args:
            answers: A chat completion a prompt.
        """
        choices = []
        for at, (prompt, answer) in enumerate(zip(self.body.prompts, answers, strict=True)):
            for choice in answer["choices"]:
                text = (prompt if self.body.echo else "") + (choice["message"]["content"] or "")
                index = at * self.body.count + choice["index"]
                choices.append(CompletionChoice(index=index, text=text, finish_reason=choice["finish_reason"]))
        usage = added([answer["usage"] for answer in answers])
        return Completion(**self.head(answers[0].get("system_fingerprint")), choices=choices, usage=usage)


def added(usages: list[dict[str, Any]]) -> Usage:
    """The usage of several answers."""
    return Usage(**{name: sum(usage[name] for usage in usages) for name in Usage.model_fields})


async def all_of(engine: Engine, asked: list[dict[str, Any]], served: Served) -> dict[str, Any]:
    """The engine's answers to all requests, as `answers`; the first failure ends the others.

    Raises:
        ApiError: The engine's.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(engine.complete(one, served)) for one in asked]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return {"answers": [task.result() for task in tasks]}


def in_own_words(problem: ApiError) -> ApiError:
    """An engine's refusal, with the names this request has for what it is about."""
    if problem.param is not None and problem.param.startswith("messages"):
        problem.param, problem.message = "prompt", problem.message.replace("The messages are", "The prompt is")
    return problem
