"""An API with an engine that says what the test wants, a key that keeps completions, and an adapter a job trained."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.auth import key_hash
from app.db import Database
from app.models import ApiKey, Project
from app.worker.objects import pin
from tests.app.conftest import BUCKET, MODEL, Service, serving
from tests.app.inference.peer import Peer, streamed, whole
from tests.app.jobs import factory

KEEPING = "lf-keeping"
numbers = itertools.count(1)


class Api(httpx.Client):
    """The API as the key that keeps completions asks it."""


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    engine = Peer()
    yield engine
    engine.close()


@pytest_asyncio.fixture(scope="module")
async def project(db: Database) -> AsyncIterator[str]:
    """A project whose key keeps completions for an hour."""
    async with db.transaction() as session:
        await session.merge(Project(id="proj_keeping", name="keeping"))
        await session.flush()
        await session.merge(ApiKey(
            id="key_keeping", project_id="proj_keeping", hash=key_hash(KEEPING), scopes=["read", "write"], keep_completions=3600,
        ))  # fmt: skip
    yield "proj_keeping"


@pytest.fixture(scope="module")
def api(service: Service, peer: Peer, project: str) -> Iterator[Api]:
    """The API, asked with the key that keeps completions."""
    with (
        serving(service.settings.model_copy(update={"engine_url": peer.url})) as url,
        httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {KEEPING}"}, timeout=60, trust_env=False
        ) as client,
    ):
        yield client


Ask = Callable[..., str]


@pytest.fixture
def ask(api: Api, peer: Peer) -> Ask:
    """Asks a question, gets the answer that the test wants; the completion's id."""

    def once(model: str, question: str, answer: str, *, stream: bool = False, **given: Any) -> str:
        made = f"chatcmpl-{next(numbers)}-{question[:8].replace(' ', '')}"
        if stream:
            parts = [
                {"delta": {"role": "assistant", "content": ""}},
                *({"delta": {"content": letter}} for letter in answer),
            ]
            chunks = [{"id": made, "choices": [{"index": 0, **part}]} for part in parts]
            peer.answer(streamed(chunks))
        else:
            message = {"role": "assistant", "content": answer}
            peer.answer(
                whole(200, {"id": made, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
            )
        body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": stream} | given
        said = api.post("/v1/chat/completions", json=body)
        assert said.status_code == 200, said.text
        return made

    return once


def rows(*pairs: tuple[str, str]) -> bytes:
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


TRAINED = [(f"Old question {n}", f"old answer {n}") for n in range(12)]
HELD_OUT = [("Held question 0", "held answer 0"), ("Held question 1", "held answer 1")]


async def trained(service: Service, db: Database, api: Api, name: str, **fields: Any) -> str:
    """An adapter whose promoted version a job trained on TRAINED, with HELD_OUT held out; the job."""
    for key, pairs in (("train", TRAINED), ("held", HELD_OUT)):
        service.s3.put_object(Bucket=BUCKET, Key=f"{name}/{key}.jsonl", Body=rows(*pairs))
    body = {
        "model": MODEL, "training_file": f"s3://{BUCKET}/{name}/train.jsonl", "suffix": name,
        "validation_file": f"s3://{BUCKET}/{name}/held.jsonl", "output": {"register_as": name},
    } | fields  # fmt: skip
    made = api.post("/v1/fine_tuning/jobs", json={key: value for key, value in body.items() if value is not None})
    assert made.status_code == 201, made.text
    job_id: str = made.json()["id"]
    from app.jobs import lifecycle

    async with db.transaction() as session:
        job = await lifecycle.lock(session, job_id)
        job.training_objects = [
            row.model_dump(mode="json") for row in pin(service.s3, body["training_file"], "training_file")
        ]
        if body["validation_file"]:
            found = pin(service.s3, body["validation_file"], "validation_file")
            job.validation_objects = [row.model_dump(mode="json") for row in found]
    await factory.move(db, job_id, "succeeded")
    return job_id
