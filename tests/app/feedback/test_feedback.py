"""Feedback as clients give it: on completions of keys that keep them, whole and streamed; rates; a dataset of it; retention."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import select, update

from app.auth import Caller
from app.db import Database
from app.feedback import examples
from app.feedback.completions import Keeper
from app.housekeeping.house import House
from app.housekeeping.rows import forget
from app.models import Completion, Feedback
from app.projects import service as projects
from tests.app.conftest import BUCKET, MODEL, Service
from tests.app.feedback.conftest import HELD_OUT, TRAINED, Api, Ask, trained
from tests.app.inference.peer import Peer, streamed, whole

pytestmark = pytest.mark.db


def give(api: Api, completion: str, **said: Any) -> httpx.Response:
    return api.post("/v1/feedback", json={"completion_id": completion, **said})


@pytest.fixture(scope="module")
async def kpi(service: Service, db: Database, api: Api) -> str:
    """An adapter's name."""
    await trained(service, db, api, "fb-kpi")
    return "fb-kpi"


async def test_an_answer_of_an_adapter_is_corrected_and_remembers_which_version_it_was(
    api: Api, ask: Ask, kpi: str
) -> None:
    for stream in (False, True):
        completion = await asyncio.to_thread(ask, kpi, "What is churn?", "A butter machine", stream=stream)
        said = give(api, completion, correction="Customers lost in a month", comment="glossary")
        assert said.status_code == 200, said.text
        row = said.json()
        assert (row["adapter"], row["version"], row["rating"], row["answer"]) == (kpi, 1, "bad", "A butter machine")
        assert row["messages"] == [{"role": "user", "content": "What is churn?"}]
        assert api.get(f"/v1/feedback/{row['id']}").json() == row
        again = give(api, completion, rating="good")
        assert (again.json()["id"], again.json()["rating"], again.json()["correction"]) == (row["id"], "good", None)


async def test_a_response_is_a_completion_too(api: Api, peer: Peer, kpi: str) -> None:
    for stream in (False, True):
        message = {"role": "assistant", "content": "A"}
        end = {"index": 0, "finish_reason": "stop"}
        chunks = [{"id": "chatcmpl-r", "choices": [{"index": 0, "delta": message}]}, {"choices": [end | {"delta": {}}]}]
        whole_one = whole(200, {"id": "chatcmpl-r", "choices": [end | {"message": message}]})
        peer.answer(streamed(chunks) if stream else whole_one)
        body = {"model": kpi, "input": "What is churn?", "instructions": "Be short.", "stream": stream}
        said = await asyncio.to_thread(api.post, "/v1/responses", json=body)
        assert said.status_code == 200, said.text
        found = re.search(r'"id": ?"(resp_\w+)"', said.text)
        assert found is not None
        row = give(api, found[1], rating="bad").json()
        assert (row["adapter"], row["version"], row["answer"], row["messages"][-1]["content"]) == (
            kpi,
            1,
            "A",
            "What is churn?",
        )


async def test_parts_and_developers_are_plain_turns_and_a_base_has_no_version(api: Api, ask: Ask) -> None:
    turns = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    completion = await asyncio.to_thread(ask, MODEL, "x", "Hello", messages=turns)
    row = give(api, completion, rating="good").json()
    assert row["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    assert (row["adapter"], row["version"], row["model"]) == (None, None, MODEL)


async def test_what_is_no_feedback_is_told(api: Api, ask: Ask, kpi: str) -> None:
    completion = await asyncio.to_thread(ask, kpi, "Q", "A")
    for body, status, code, param in (
        ({}, 400, "empty_feedback", "rating"),
        ({"correction": "  "}, 400, "empty_feedback", "rating"),
        ({"rating": "bad", "correction": ""}, 400, "empty_feedback", "correction"),
        ({"rating": "great"}, 400, "invalid_value", "rating"),
        ({"rating": "bad", "choice": 1}, 400, "invalid_value", "choice"),
        ({"rating": "bad", "raiting": 1}, 400, "unknown_parameter", "raiting"),
    ):
        error = give(api, completion, **body)
        assert (error.status_code, error.json()["error"]["param"]) == (status, param), error.text
        assert error.json()["error"]["code"] == code
    error = give(api, "chatcmpl-none", rating="good")
    assert (error.status_code, error.json()["error"]["code"]) == (404, "completion_not_found")
    assert "--keep-completions" in error.json()["error"]["message"]


async def test_a_key_that_keeps_nothing_keeps_nothing_and_nobody_else_sees_what_is_kept(
    service: Service, db: Database, api: Api, ask: Ask, peer: Peer, kpi: str
) -> None:
    completion = await asyncio.to_thread(ask, kpi, "Mine", "A")
    for project in ("alpha", "beta"):
        with service.http(project) as other:
            said = other.post("/v1/feedback", json={"completion_id": completion, "rating": "bad"})
            assert said.status_code == 404
            assert other.get("/v1/feedback/rates", params={"adapter": kpi}).json()["data"] == []
    message = {"role": "assistant", "content": "A"}
    peer.answer(
        whole(200, {"id": "chatcmpl-unkept", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    )
    key = {"authorization": "Bearer lf-alpha"}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    said = await asyncio.to_thread(api.post, "/v1/chat/completions", json=body, headers=key)
    assert said.status_code == 200
    async with db.transaction() as session:
        assert await session.get(Completion, "chatcmpl-unkept") is None


async def test_rates_count_by_version(api: Api, ask: Ask, service: Service, db: Database) -> None:
    await trained(service, db, api, "fb-rates")
    for rating in ("good", "bad", "bad"):
        give(api, await asyncio.to_thread(ask, "fb-rates", f"Q {rating}", "A"), rating=rating)
    await trained(service, db, api, "fb-rates")
    give(api, await asyncio.to_thread(ask, "fb-rates", "Q", "A"), correction="B")
    found = api.get("/v1/feedback/rates", params={"adapter": "fb-rates"}).json()["data"]
    assert [(row["version"], row["ratings"], row["bad"], row["corrections"]) for row in found] == [
        (2, 1, 1, 1),
        (1, 3, 2, 0),
    ]
    assert found[1]["bad_rate"] == pytest.approx(2 / 3)
    assert len(api.get("/v1/feedback", params={"adapter": "fb-rates", "rating": "bad"}).json()["data"]) == 3


async def test_an_export_leaves_out_what_was_trained_on_and_what_is_held_out(
    api: Api, ask: Ask, service: Service, db: Database
) -> None:
    name = "fb-export"
    await trained(service, db, api, name)
    nothing = api.post("/v1/feedback/export", json={"adapter": name})
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (400, "no_examples")
    assert "There is no feedback" in nothing.json()["error"]["message"]
    said = [
        (*TRAINED[0], None), (TRAINED[1][0], "wrong", TRAINED[1][1]), (HELD_OUT[0][0], "wrong", "leaks"),
        ("New one", "wrong", "first try"), ("New one", "wrong", "right"), (TRAINED[2][0], "wrong", "corrected"),
        ("Good one", "well said", None),
    ]  # fmt: skip
    for question, answer, correction in said:
        completion = await asyncio.to_thread(ask, name, question, answer)
        assert (
            give(api, completion, **({"correction": correction} if correction else {"rating": "good"})).status_code
            == 200
        )
    made = api.post("/v1/feedback/export", json={"adapter": name}).json()
    counts = {key: made[key] for key in ("examples", "already_trained", "held_out", "repeated")}
    assert counts == {"examples": 2, "already_trained": 1, "held_out": 1, "repeated": 1}
    content = api.get(f"/v1/files/{made['file_id']}/content").content.decode().splitlines()
    turns = [json.loads(line)["messages"] for line in content]
    assert [[turn["content"] for turn in row] for row in turns] == [["New one", "right"], [TRAINED[2][0], "corrected"]]
    uri = f"s3://{BUCKET}/exports/feedback.jsonl"
    more = api.post("/v1/feedback/export", json={"adapter": name, "include_good": True, "uri": uri}).json()
    assert (more["examples"], more["already_trained"], more["uri"], more["file_id"]) == (3, 2, uri, None)
    body = service.s3.get_object(Bucket=BUCKET, Key="exports/feedback.jsonl")["Body"].read()
    assert body.count(b"\n") == 3
    for wrong, code in ((f"s3://{BUCKET}/dir/", "invalid_value"), ("s3://elsewhere/x.jsonl", "path_not_allowed")):
        refused = api.post("/v1/feedback/export", json={"adapter": name, "uri": wrong})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, code)


async def test_what_is_past_its_time_is_deleted_and_what_was_said_outlives_the_completion(
    service: Service, db: Database, api: Api, ask: Ask, kpi: str
) -> None:
    old, kept = [await asyncio.to_thread(ask, kpi, f"Time {n}", "A") for n in range(2)]
    row = give(api, old, rating="bad").json()
    async with db.transaction() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await session.execute(update(Completion).where(Completion.id == old).values(expires_at=past))
    await forget(House(service.settings, db))
    async with db.transaction() as session:
        there = set((await session.execute(select(Completion.id).where(Completion.id.in_([old, kept])))).scalars())
    assert there == {kept}
    assert api.get(f"/v1/feedback/{row['id']}").json()["answer"] == "A"
    async with db.transaction() as session:
        await session.execute(
            update(Feedback).where(Feedback.id == row["id"]).values(updated_at=past - timedelta(days=400))
        )
    await forget(House(service.settings, db))
    assert api.get(f"/v1/feedback/{row['id']}").status_code == 404


async def test_a_key_can_be_told_to_keep_and_to_forget(db: Database, api: Api, ask: Ask, kpi: str) -> None:
    completion = await asyncio.to_thread(ask, kpi, "Forget", "A")
    async with db.transaction() as session:
        assert (await projects.keep_completions(session, "key_keeping", 0)).keep_completions is None
    async with db.transaction() as session:
        assert await session.get(Completion, completion) is None
        assert (await projects.keep_completions(session, "key_keeping", 0.5)).keep_completions == 43200


def test_of_a_combination_the_member_that_was_chosen_answered() -> None:
    def keeper() -> Keeper:
        caller = Caller("proj_keeping", "keeping", "key_keeping", frozenset({"read"}), None, 3600)
        return Keeper(cast("Database", None), caller, "a+b", [], members={"a": "ft:a", "b": "ft:b"})

    routed, plain = keeper(), keeper()
    assert not routed.take(b'data: {"id": "x", "choices": [], "llamaflow": {"method": "route", "adapter": "b"}}')
    plain.take(b'data: {"id": "x", "choices": [], "llamaflow": {"method": "route", "adapter": null}}')
    assert (routed.served, plain.served) == ("ft:b", None)
    assert routed.take(b"data: [DONE]")


def test_the_newest_of_a_question_counts_and_blanks_do_not() -> None:
    def example(question: str, answer: str) -> examples.Example:
        return examples.Example([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])

    training, held = examples.Known(), examples.Known()
    training.add(example("a", "1"))
    held.add(example("b", "2"))
    found = [example(" a ", "1"), example("a", "3"), example("b ", "4"), example("a", "5")]
    chosen = examples.choose(found, training, held)
    assert [row.answer for row in chosen.examples] == ["5"]
    assert chosen.counts() == {"new": 1, "already_trained": 1, "held_out": 1, "repeated": 1}
