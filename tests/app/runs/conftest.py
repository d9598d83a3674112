"""A job that runs, its run's token, and who holds it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest_asyncio
from openai import OpenAI
from sqlalchemy import select

from app.db import Database
from app.models import Job, Run
from app.runs import tokens
from tests.app.conftest import Service
from tests.app.jobs import factory

HOLDER = "train-0123456789"
OTHER = "train-9876543210"
KEY = "k" * 64


@dataclass
class Task:
    """What the training of a run has: its token. `other` is another process with the same."""

    job: Job
    run: Run
    token: str
    http: httpx.Client

    def ask(self, method: str, path: str, body: Any = None, *, holder: str | None = HOLDER) -> httpx.Response:
        """One request of the training."""
        whole = None if body is None else (body if holder is None else {"holder": holder, **body})
        return self.http.request(method, f"/internal/runs{path}", json=whole)

    def take(self, holder: str = HOLDER, key: str = KEY) -> bool:
        """Ask for the lease."""
        answer = self.ask("PUT", "/lease", {"train_key": key}, holder=holder)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["held"])

    def put(self, content: bytes) -> httpx.Response:
        """Write an object of the mirror; S3's answer."""
        piece = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        answer = self.ask("POST", "/objects", {"method": "put", "objects": [piece]})
        assert answer.status_code == 200, answer.text
        return write(answer.json()["urls"][piece["sha256"]], content)


def write(url: str, content: bytes, sha256: str | None = None) -> httpx.Response:
    """What a training sends to a presigned address."""
    from app.runs.mirror import checksum

    told = checksum(sha256 or hashlib.sha256(content).hexdigest())
    return httpx.put(url, content=content, headers={"x-amz-checksum-sha256": told}, trust_env=False)


def read(url: str) -> httpx.Response:
    """What S3 answers at an address."""
    return httpx.get(url, trust_env=False)


def code(answer: httpx.Response) -> tuple[int, str | None]:
    """Status and error code of an answer."""
    return answer.status_code, answer.json()["error"]["code"]


@pytest_asyncio.fixture
async def tasks(service: Service, db: Database, client: OpenAI) -> AsyncIterator[Callable[..., Awaitable[Task]]]:
    """Makes running jobs, each with the token of its run."""
    made: list[httpx.Client] = []

    async def make(seconds: float = 900.0) -> Task:
        job_id = factory.create(client, seed=len(made))
        await factory.move(db, job_id, "running")
        async with db.transaction() as session:
            job = await session.get_one(Job, job_id)
            run = (await session.execute(select(Run).where(Run.job_id == job_id))).scalar_one()
            token = await tokens.issue(session, run, seconds)
        headers = {"authorization": f"Bearer {token}"}
        made.append(httpx.Client(base_url=service.url, headers=headers, timeout=30, trust_env=False))
        return Task(job, run, token, made[-1])

    yield make
    for http in made:
        http.close()


@pytest_asyncio.fixture
async def task(tasks: Callable[..., Awaitable[Task]]) -> Task:
    """A training that has its lease."""
    made = await tasks()
    assert made.take()
    return made
