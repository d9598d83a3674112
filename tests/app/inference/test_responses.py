"""/v1/responses as the official client sees it: whole, streamed, kept, gone on from; what is not offered is said by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from sqlalchemy import text

from app.db import Database
from tests.app.conftest import MODEL, Service, serving
from tests.app.inference.peer import Peer, streamed, whole

pytestmark = pytest.mark.db

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
BOTH_KINDS: Any = [
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": [{"type": "input_text", "text": "Olá, "}, {"type": "input_text", "text": "tudo bem?"}]},
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_x",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Sim.", "annotations": []}],
    },
    {"type": "reasoning", "id": "rs_x", "summary": []},
    {"type": "message", "role": "user", "content": "E agora?"},
]


@pytest.fixture(scope="module")
def client(api: str) -> Iterator[OpenAI]:
    with asking(api) as made:
        yield made


def asking(api: str, project: str = "alpha") -> OpenAI:
    return OpenAI(base_url=f"{api}/v1", api_key=f"lf-{project}", max_retries=0, _strict_response_validation=True)


def completion(content: str, reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    return whole(200, {"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE})


def chunk(content: str | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content} if content else {}, "finish_reason": reason}]}


def test_a_text_is_answered_in_the_clients_own_type(client: OpenAI, peer: Peer) -> None:
    told: list[dict[str, Any]] = []
    peer.answer(completion("Bem!"), then=told.append)
    response = client.responses.create(
        model=MODEL, input="Olá", instructions="Be kind.", temperature=0, max_output_tokens=9, metadata={"a": "b"},
        tools=[], parallel_tool_calls=True, text={}, background=False, include=["reasoning.encrypted_content"],
    )  # fmt: skip
    assert told[0]["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Olá"}]
    assert (told[0]["max_completion_tokens"], told[0]["temperature"]) == (9, 0)
    assert (response.output_text, response.status, response.store) == ("Bem!", "completed", True)
    assert (response.instructions, response.metadata, response.temperature) == ("Be kind.", {"a": "b"}, 0)
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (5, 2, 7)


def test_messages_of_every_spelling_reach_the_engine(client: OpenAI, peer: Peer) -> None:
    told: list[dict[str, Any]] = []
    peer.answer(completion("Agora"), then=told.append)
    client.responses.create(model=MODEL, input=BOTH_KINDS, instructions="Be kind.", store=False)
    assert told[0]["messages"] == [
        {"role": "system", "content": "Be kind.\n\nBe short."},
        {"role": "user", "content": "Olá, tudo bem?"},
        {"role": "assistant", "content": "Sim."},
        {"role": "user", "content": "E agora?"},
    ]


def test_an_answer_cut_at_its_limit_says_so(client: OpenAI, peer: Peer) -> None:
    peer.answer(completion("and so", "length"))
    response = client.responses.create(model=MODEL, input="Go on", max_output_tokens=2, store=False)
    assert (response.status, response.output[0].status) == ("incomplete", "incomplete")  # type: ignore[union-attr]
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_a_stream_is_what_the_clients_helper_accepts(client: OpenAI, peer: Peer) -> None:
    told: list[dict[str, Any]] = []
    said = [{"choices": [], "usage": USAGE}]
    peer.answer(streamed([chunk("Ol"), chunk("á"), chunk(reason="stop"), *said]), then=told.append)
    with client.responses.stream(model=MODEL, input="Hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert told[0]["stream_options"] == {"include_usage": True}
    assert [event.type for event in events] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(10))
    assert (final.output_text, final.usage and final.usage.total_tokens) == ("Olá", 7)
    assert client.responses.retrieve(final.id).output_text == "Olá"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (
            [chunk("Ol"), {"error": {"message": "The engine is out of memory.", "code": "out_of_memory"}}],
            "out of memory",
        ),
        ([chunk("Ol")], "broke off"),
    ],
)
def test_a_stream_that_fails_ends_with_the_reason_and_nothing_is_kept(
    client: OpenAI, peer: Peer, sent: list[dict[str, Any]], said: str
) -> None:
    peer.answer(streamed(sent))
    *_, last = client.responses.create(model=MODEL, input="Hello", stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert said in last.response.error.message
    with pytest.raises(NotFoundError):
        client.responses.retrieve(last.response.id)


def test_it_goes_on_from_one_that_was_kept_without_its_instructions(client: OpenAI, peer: Peer) -> None:
    told: list[dict[str, Any]] = []
    peer.answer(completion("Lisboa"), then=told.append)
    first = client.responses.create(model=MODEL, input="Capital?", instructions="In Portuguese.")
    peer.answer(completion("Tejo"), then=told.append)
    before = client.responses.create(
        model=MODEL, input="Next?", instructions="One word.", previous_response_id=first.id
    )
    assert told[1]["messages"] == [
        {"role": "system", "content": "One word."},
        {"role": "user", "content": "Capital?"},
        {"role": "assistant", "content": "Lisboa"},
        {"role": "user", "content": "Next?"},
    ]
    items = client.responses.input_items.list(before.id, order="asc")
    assert [item.content[0].text for item in items] == ["Capital?", "Lisboa", "Next?"]  # type: ignore[union-attr]
    newest = client.responses.input_items.list(before.id, limit=1)
    assert newest.data[0].content[0].text == "Next?"  # type: ignore[union-attr]
    assert newest.has_more


def test_what_is_kept_is_the_projects_alone_and_can_be_deleted(api: str, client: OpenAI, peer: Peer) -> None:
    peer.answer(completion("secret"))
    made = client.responses.create(model=MODEL, input="NUL \x00 is no text for a jsonb column")
    with asking(api, "beta") as other:
        for call in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
            with pytest.raises(NotFoundError):
                call(made.id)
        with pytest.raises(BadRequestError) as refused:
            other.responses.create(model=MODEL, input="x", previous_response_id=made.id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")
    assert client.responses.retrieve(made.id) == made
    with pytest.raises(BadRequestError, match="Hang up"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(made.id)


async def test_one_that_is_not_to_be_stored_or_has_expired_is_not_there(
    client: OpenAI, peer: Peer, db: Database
) -> None:
    peer.answer(completion("gone"))
    unstored = client.responses.create(model=MODEL, input="x", store=False)
    peer.answer(completion("old"))
    old = client.responses.create(model=MODEL, input="x")
    async with db.transaction() as session:
        await session.execute(text("update responses set expires_at = now() where id = :id"), {"id": old.id})
    assert unstored.store is False
    for gone in (unstored, old):
        with pytest.raises(NotFoundError):
            client.responses.retrieve(gone.id)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"reasoning": {"effort": "high"}}, "reasoning", "unsupported_parameter"),
        ({"text": {"format": {"type": "json_object"}}}, "text", "unsupported_parameter"),
        ({"include": ["message.output_text.logprobs"]}, "include", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"nonsense": 1}, "nonsense", "unsupported_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "reasoning"}]}, "input", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "invalid_value"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].type", "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
            "unsupported_parameter",
        ),
        ({"temperature": 3}, "temperature", None),
        ({"model": "org/none"}, "model", "model_not_found"),
        ({"previous_response_id": "resp_none"}, "previous_response_id", "previous_response_not_found"),
    ],
)
def test_what_is_not_offered_is_named(api: str, body: dict[str, Any], param: str, code: str | None) -> None:
    asked = {"model": MODEL, "input": "x"} | body
    answer = httpx.post(
        f"{api}/v1/responses", json=asked, headers={"authorization": "Bearer lf-gamma"}, trust_env=False
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if code == "model_not_found" else 400, param)
    assert code in (None, error["code"])


def test_an_engines_refusal_speaks_of_the_requests_own_fields(client: OpenAI, peer: Peer) -> None:
    error = {
        "message": "messages[0].content: too long.",
        "param": "messages[0].content",
        "code": "context_length_exceeded",
    }
    peer.answer(whole(400, {"error": error}))
    with pytest.raises(APIStatusError) as refused:
        client.responses.create(model=MODEL, input="x")
    assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")
    assert json.dumps(refused.value.body).count("messages") == 0


def test_where_nothing_is_kept_it_says_so(service: Service, peer: Peer) -> None:
    settings = service.settings.model_copy(update={"engine_url": peer.url, "keep_responses": 0})
    with serving(settings) as url, asking(url) as client:
        peer.answer(completion("x"))
        made = client.responses.create(model=MODEL, input="x", store=True)
        assert made.store is False
        with pytest.raises(NotFoundError):
            client.responses.retrieve(made.id)
