"""A run token opens the internal routes for its own run until that is over, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
import pytest
from sqlalchemy import func, select, update

from app.auth import key_hash
from app.db import Database
from app.models import RunToken
from app.runs import tokens
from tests.app.conftest import Service
from tests.app.runs.conftest import KEY, OTHER, Task, code

pytestmark = pytest.mark.db

Tasks = Callable[..., Awaitable[Task]]
ROUTES = [
    ("PUT", "/lease", {"train_key": KEY}),
    ("POST", "/lease/release", {}),
    ("POST", "/lines", {"start": 0, "text": ""}),
    ("GET", "/lines", None),
    ("POST", "/objects", {"method": "get", "objects": [{"sha256": "a" * 64, "size": 1}]}),
    ("GET", "/mirror", None),
    ("PUT", "/mirror", {"mirror": {"train_key": KEY, "files": []}}),
]


def refusals(task: Task, http: httpx.Client | None = None) -> set[tuple[int, str | None]]:
    """What every internal route answers."""
    asker = task if http is None else Task(task.job, task.run, task.token, http)
    return {code(asker.ask(*route)) for route in ROUTES}


async def test_a_run_token_is_refused_by_every_other_route(task: Task) -> None:
    public = ["/v1/fine_tuning/jobs", f"/v1/fine_tuning/jobs/{task.job.id}", "/v1/files", "/v1/models"]
    assert {code(task.http.get(path)) for path in public} == {(401, "invalid_api_key")}


async def test_a_projects_key_is_refused_by_every_internal_route(service: Service, task: Task) -> None:
    with service.http("alpha") as http:
        assert refusals(task, http) == {(401, "invalid_run_token")}
    with httpx.Client(base_url=service.url, trust_env=False) as http:
        assert refusals(task, http) == {(401, "missing_run_token")}


async def test_it_ends_with_its_run(task: Task, db: Database) -> None:
    async with db.transaction() as session:
        await tokens.revoke(session, task.run.id)
        await tokens.renew(session, task.run.id, 3600)
    assert refusals(task) == {(401, "invalid_run_token")}


async def test_the_next_runs_token_ends_the_last_ones(task: Task, db: Database) -> None:
    async with db.transaction() as session:
        await tokens.issue(session, task.run, 60)
    assert refusals(task) == {(401, "invalid_run_token")}


async def test_it_expires_by_the_databases_clock_and_an_expired_one_renews_nothing(task: Task, db: Database) -> None:
    await expire_in(db, task, -1)
    assert refusals(task) == {(401, "invalid_run_token")}


async def test_a_heartbeat_keeps_it(task: Task, db: Database) -> None:
    await expire_in(db, task, 30)
    task.take()
    async with db.transaction() as session:
        left = select(RunToken.expires_at - func.clock_timestamp()).where(RunToken.run_id == task.run.id)
        assert (await session.execute(left)).scalar_one().total_seconds() > 3000


async def test_only_its_hash_is_kept(task: Task, db: Database) -> None:
    async with db.transaction() as session:
        row = (await session.execute(select(RunToken).where(RunToken.run_id == task.run.id))).scalar_one()
    assert row.hash == key_hash(task.token)
    assert task.token not in repr(vars(row))


async def test_it_says_nothing_about_other_jobs(task: Task, tasks: Tasks) -> None:
    other = await tasks()
    assert other.take(OTHER)
    assert task.ask("POST", "/lines", {"start": 0, "text": '{"event": "mine"}\n'}).json() == {"end": 18}
    assert other.ask("GET", "/lines").json() == {"text": ""}
    assert code(task.ask("POST", "/lines", {"start": 18, "text": ""}, holder=OTHER)) == (409, "lease_lost")


async def test_the_document_of_the_api_does_not_know_them(service: Service) -> None:
    with service.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    assert paths
    assert not [path for path in paths if "internal" in path]


async def expire_in(db: Database, task: Task, seconds: float) -> None:
    """Move the end of a token."""
    at = func.clock_timestamp() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    async with db.transaction() as session:
        await session.execute(update(RunToken).where(RunToken.run_id == task.run.id).values(expires_at=at))
