"""The order of the queue, and that finding its head costs the same however many jobs have ended or wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import Text

from app.worker import claim, queue
from app.worker.capacity import HOST_BOUND
from app.worker.claim import Claimant
from tests.app.worker.services import World

pytestmark = pytest.mark.db

ANN = Claimant("worker-ann", 30.0, "here", "boot", "ns", ["local"], 600.0)

MANY = """
insert into jobs (id, project_id, api_key_id, status, spec, model, base, training_file, seed, request_hash, finished_at)
select :prefix || n, :project, :key, :status, '{}', 'tiny', '{}', 's3://b/k', 1, '',
       case when :status = 'succeeded' then clock_timestamp() end
from generate_series(1, :count) n
"""


async def plan(world: World, kind: str, projects: list[str]) -> list[dict[str, Any]]:
    """The nodes of a claim's plan as it ran, with many jobs of each project that wait and more that ended; all of it is undone."""
    statement = queue.CLAIM_RUN if kind == "queued" else queue.CLAIM_VALIDATION
    known = vars(ANN) | {"host_bound": list(HOST_BOUND)}
    used = {name: value for name, value in known.items() if f":{name}" in statement}
    types: list[Any] = [
        bindparam(name, type_=ARRAY(Text)) for name in ("dead", "profiles", "host_bound") if name in used
    ]
    async with world.database.engine.connect() as connection:
        for project in projects:
            for status, count in (("succeeded", 8000), (kind, 1000)):
                given = {"prefix": f"{project}-{status}-", "project": project, "key": f"key-{project}"}
                await connection.execute(text(MANY), given | {"status": status, "count": count})
        await connection.execute(text("analyze jobs"))
        explained = text(f"explain (analyze, format json) {statement}").bindparams(*types)
        (tree,) = (await connection.execute(explained, used)).one()
        await connection.rollback()
    return list(nodes(tree[0]["Plan"]))


def nodes(top: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield top
    for below in top.get("Plans", []):
        yield from nodes(below)


async def drain(world: World) -> list[str]:
    """Every job in the order in which it is claimed."""
    order = []
    while True:
        async with world.database.transaction() as db:
            taken = await claim.claim_run(db, ANN)
        if taken is None:
            return order
        order.append(taken.job_id)


@pytest.mark.parametrize("kind", ["validating_files", "queued"])
async def test_a_claim_looks_at_the_head_of_each_queue_and_at_nothing_else(world: World, kind: str) -> None:
    projects = [await world.project(f"project-{number}") for number in range(5)]
    found = await plan(world, kind, projects)
    on_jobs = [node for node in found if node.get("Relation Name") == "jobs" and "Scan" in node["Node Type"]]
    assert {node["Node Type"] for node in on_jobs} <= {"Index Scan", "Index Only Scan", "Bitmap Heap Scan"}
    assert max(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in on_jobs) <= queue.PLACES
    assert max(node["Actual Rows"] for node in found if node["Node Type"] == "Sort") <= len(projects) * queue.PLACES


async def test_projects_take_turns_however_many_jobs_each_has(world: World) -> None:
    large, small, tiny = [await world.project(name) for name in ("large", "small", "tiny")]
    jobs = {
        name: [await world.job(name, status="queued") for _ in range(n)]
        for name, n in ((large, 5), (small, 3), (tiny, 1))
    }
    whose = {job: project for project, ids in jobs.items() for job in ids}
    order = await drain(world)
    assert [whose[job] for job in order] == [large, small, tiny, large, small, large, small, large, large]
    assert [job for job in order if whose[job] == large] == jobs[large]


async def test_a_higher_priority_goes_first_in_its_project_and_between_projects(world: World) -> None:
    one, other = await world.project("one"), await world.project("other")
    low = await world.job(one, status="queued", execution={"priority": -5})
    plain = await world.job(one, status="queued")
    high = await world.job(other, status="queued", execution={"priority": 5})
    higher = await world.job(other, status="queued", execution={"priority": 7})
    assert await drain(world) == [higher, high, plain, low]


async def test_datasets_of_projects_are_checked_in_turn_too(world: World) -> None:
    first, second = await world.project("first"), await world.project("second")
    early = [await world.job(first) for _ in range(3)]
    late = await world.job(second)
    order = []
    for _ in range(4):
        async with world.database.transaction() as db:
            taken = await claim.claim_validation(db, ANN)
        assert taken is not None
        order.append(taken.job_id)
    assert order == [early[0], late, early[1], early[2]]
