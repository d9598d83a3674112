"""What OpenAI has and this service has not is refused with a sentence, through the official client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

pytestmark = pytest.mark.db

MODEL = "ft:org/base:project:suffix:12345678:ckpt-step-10"
MESSAGES: Any = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda c: c.fine_tuning.checkpoints.permissions.create(MODEL, project_ids=["p"]),
            "Permissions on checkpoints",
        ),
        (lambda c: c.fine_tuning.checkpoints.permissions.list(MODEL), "Permissions on checkpoints"),
        (
            lambda c: c.fine_tuning.checkpoints.permissions.delete("cp_1", fine_tuned_model_checkpoint=MODEL),
            "Permissions",
        ),
        (lambda c: c.fine_tuning.alpha.graders.run(grader={}, model_sample="x"), "reinforcement"),
        (lambda c: c.fine_tuning.alpha.graders.validate(grader={}), "reinforcement"),
        (lambda c: c.chat.completions.list(), "not stored"),
        (lambda c: c.chat.completions.retrieve("chatcmpl-1"), "not stored"),
        (lambda c: c.chat.completions.update("chatcmpl-1", metadata={}), "not stored"),
        (lambda c: c.chat.completions.delete("chatcmpl-1"), "not stored"),
        (lambda c: c.chat.completions.messages.list("chatcmpl-1"), "not stored"),
        (lambda c: c.responses.input_tokens.count(model="m", input="x"), "usage"),
        (lambda c: c.responses.compact(model="m", input="x"), "compacted"),
        (lambda c: c.embeddings.create(model="m", input="x"), "models of text"),
        (lambda c: c.moderations.create(input="x"), "models of text"),
        (lambda c: c.batches.list(), "models of text"),
        (lambda c: c.images.generate(prompt="x"), "models of text"),
        (lambda c: c.vector_stores.list(), "models of text"),
        (lambda c: c.conversations.create(), "models of text"),
    ],
)
def test_it_says_why(client: OpenAI, call: Callable[[OpenAI], Any], said: str) -> None:
    with pytest.raises(BadRequestError, match=said) as refused:
        call(client)
    assert refused.value.code == "unsupported_operation"
