"""/v1/completions as the official client sees it: texts gone on from, whole and streamed; what is not offered is said by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.app.conftest import MODEL
from tests.app.inference.peer import Peer, streamed, whole

pytestmark = pytest.mark.db

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


@pytest.fixture(scope="module")
def client(api: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{api}/v1", api_key="lf-alpha", max_retries=0, _strict_response_validation=True) as made:
        yield made


def answer(*contents: str, reason: str = "stop") -> bytes:
    choices = [
        {"index": at, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
        for at, content in enumerate(contents)
    ]
    body = {"object": "chat.completion", "choices": choices, "usage": USAGE, "system_fingerprint": "fp_1"}
    return whole(200, body)


def chunk(content: str | None = None, reason: str | None = None, role: bool = False) -> dict[str, Any]:
    delta = ({"role": "assistant"} if role else {}) | ({"content": content} if content is not None else {})
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], "system_fingerprint": "fp_1"}


def test_a_text_is_gone_on_from_without_a_template(client: OpenAI, peer: Peer) -> None:
    told: list[dict[str, Any]] = []
    peer.answer(answer(" Paris.", " Lyon."), then=told.append)
    made = client.completions.create(
        model=MODEL, prompt="The capital is", n=2, best_of=2, stop=["\n"], temperature=0, top_p=1, seed=7, user="u"
    )
    assert told[0]["messages"] == [{"role": "user", "content": "The capital is"}]
    assert told[0]["llamaflow"]["raw"] is True
    wanted = {"max_tokens": 16, "n": 2, "stop": ["\n"], "temperature": 0, "top_p": 1, "seed": 7}
    assert {name: told[0][name] for name in wanted} == wanted
    assert [(choice.index, choice.text, choice.finish_reason) for choice in made.choices] == [
        (0, " Paris.", "stop"), (1, " Lyon.", "stop"),
    ]  # fmt: skip
    assert made.id.startswith("cmpl-")
    assert made.usage is not None
    assert (made.usage.total_tokens, made.system_fingerprint) == (7, "fp_1")


def test_several_prompts_are_answered_in_their_order(client: OpenAI, peer: Peer) -> None:
    told: list[dict[str, Any]] = []
    for _ in range(2):
        peer.answer(answer("!", reason="length"), then=told.append)
    made = client.completions.create(model=MODEL, prompt=["One", "Two"], echo=True, max_tokens=1)
    assert {body["messages"][0]["content"] for body in told} == {"One", "Two"}
    assert [(choice.index, choice.text, choice.finish_reason) for choice in made.choices] == [
        (0, "One!", "length"), (1, "Two!", "length"),
    ]  # fmt: skip
    assert made.usage is not None
    assert made.usage.total_tokens == 14


def test_a_stream_is_told_prompt_after_prompt(api: str, peer: Peer) -> None:
    client = OpenAI(base_url=f"{api}/v1", api_key="lf-alpha")  # the strict one refuses the nulls OpenAI itself streams
    one = [chunk("", role=True), chunk("!"), chunk(reason="stop"), {"choices": [], "usage": USAGE}]
    peer.answer(streamed(one))
    stream = client.completions.create(
        model=MODEL, prompt=["One", "Two"], stream=True, echo=True, stream_options={"include_usage": True}
    )
    peer.answer(streamed(one))
    chunks = list(stream)
    told = [(choice.index, choice.text) for each in chunks for choice in each.choices]
    assert told == [(0, "One"), (0, "!"), (0, ""), (1, "Two"), (1, "!"), (1, "")]
    assert len({each.id for each in chunks}) == 1
    assert chunks[-1].usage is not None
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 14)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 2}, "logprobs"),
        ({"best_of": 3, "n": 1}, "best_of"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(client: OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.completions.create(**{"model": MODEL, "prompt": "x"} | more)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)


def test_an_engines_refusal_is_told_in_the_requests_own_words(client: OpenAI, peer: Peer) -> None:
    error = {"message": "The messages are 9 tokens long.", "param": "messages", "code": "context_length_exceeded"}
    peer.answer(whole(400, {"error": error}))
    with pytest.raises(BadRequestError, match="The prompt is 9 tokens long") as refused:
        client.completions.create(model=MODEL, prompt="x")
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")


def test_an_unknown_model_is_a_404(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as refused:
        client.completions.create(model="nobody/has-this", prompt="x")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
