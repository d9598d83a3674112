"""The gate at the end of a job: promoted, not promoted, failed, and what was compared with is no longer promoted."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import select

from app.adapters import gate, history
from app.models import Adapter, AdapterVersion, Promotion, Run, new_id
from app.worker import folder, presence, settle
from app.worker.claim import Claim
from app.worker.context import Context, Hand
from finetune.steps import FetchStep, GateResult, Parent
from tests.app.worker.services import World
from tests.app.worker.test_settle import WELL, manifest

pytestmark = pytest.mark.db


def found(passed: bool = True, current: str | None = None, **given: Any) -> dict[str, Any]:
    """What EVALUATE says; current: the model compared with."""
    parent = current and Parent(id=current, uri="s3://llamaflow-data/x/", manifest_uri="s3://llamaflow-data/m.json")
    result = GateResult.model_validate({
        "metric": "exact_match", "better_than": "current", "min": None, "min_delta": 0.0, "confidence": None, "rows": 40,
        "compared_with": "current" if current else "base", "current": parent, "scores": {"candidate": {"exact_match": 0.9}},
        "difference": 0.1, "interval": (0.0, 0.2), "passed": passed,
        "reason": "exact_match 0.9 > 0.8" if passed else "exact_match 0.8 the same as 0.8",
    } | given)  # fmt: skip
    return result.model_dump(mode="json")


async def ended(
    world: World, project: str, told: dict[str, Any] | None, *, suffix: str | None = "kpi", **evaluation: Any
) -> tuple[Any, AdapterVersion | None]:
    """The job whose EVALUATE found `told`, settled; and its version."""
    asked = {"gate": {"metric": "exact_match", "better_than": "current"}} | evaluation
    job_id = await world.job(project, status="running", suffix=suffix, evaluation=asked, data={"validation_split": 0.2})
    run = Run(
        id=new_id("run_"), project_id=project, job_id=job_id, attempt=1, fence=0, profile="local", host="h",
        session_uuid="u", folder=str(folder.of(world.settings, job_id).run(1)),
    )  # fmt: skip
    async with world.database.transaction() as db:
        db.add(run)
    made = manifest(job_id)
    if told is not None:
        made["evaluation"]["gate"] = told
    world.put(f"model/{job_id}/adapter/adapter_model.safetensors", b"1234")
    world.put(f"model/{job_id}/manifest.json", json.dumps(made).encode())
    context = Context(world.settings, world.database, presence.myself(world.settings))
    await settle.succeed(context, Hand(Claim(job_id, 0, None)), await world.get(job_id), run, WELL)
    async with world.database.transaction() as db:
        query = select(AdapterVersion).where(AdapterVersion.job_id == job_id)
        return await world.get(job_id), (await db.execute(query)).scalar_one_or_none()


async def promoted(world: World, name: str = "kpi") -> int | None:
    async with world.database.transaction() as db:
        return (await db.execute(select(Adapter.promoted_version).where(Adapter.name == name))).scalar_one()


async def test_what_is_better_is_promoted_and_what_is_not_is_kept(stored: World) -> None:
    project = await stored.project()
    job, first = await ended(stored, project, found())
    assert first is not None
    assert (job.status, first.verdict, await promoted(stored)) == ("succeeded", "promoted", 1)
    job, second = await ended(stored, project, found(current=first.model))
    assert second is not None
    assert await promoted(stored) == 2
    said = await stored.messages(job.id)
    assert "Version 2 of adapter kpi is better than version 1 (exact_match 0.9 > 0.8): promoted" in said
    job, third = await ended(stored, project, found(passed=False, current=second.model))
    assert third is not None
    assert (job.status, third.verdict, await promoted(stored)) == ("succeeded", "not_promoted", 2)
    assert third.gate is not None
    assert (third.gate["code"], third.gate["interval"]) == ("gate_rejected", [0.0, 0.2])
    said = await stored.messages(job.id)
    assert any(text.startswith("Version 3 of adapter kpi is not promoted, compared with version 2") for text in said)
    kinds = [(row.to_version, row.reason) for row in await stored.rows(Promotion)]
    assert kinds == [
        (1, "better than the base: exact_match 0.9 > 0.8"),
        (2, "better than version 1: exact_match 0.9 > 0.8"),
    ]


@pytest.mark.parametrize("told", [found(passed=False), None], ids=["worse", "nothing-compared"])
async def test_a_job_may_fail_for_its_gate_and_its_scores_are_still_on_s3(
    stored: World, told: dict[str, Any] | None
) -> None:
    job, version = await ended(stored, await stored.project(), told, on_reject="fail")
    assert (job.status, job.error["code"], job.error["param"], version) == (
        "failed",
        "gate_rejected",
        "evaluation.gate",
        None,
    )
    assert stored.keys(f"model/{job.id}/manifest.json")
    assert job.output["uri"].endswith(f"{job.id}/")


async def test_a_comparison_is_stale_when_another_version_was_promoted_meanwhile(stored: World) -> None:
    project = await stored.project()
    _, first = await ended(stored, project, found())
    _, second = await ended(stored, project, found(current=first and first.model))
    job, third = await ended(stored, project, found(current=first and first.model))
    assert second is not None
    assert third is not None
    assert (third.verdict, third.gate and third.gate["code"], await promoted(stored)) == (
        "not_promoted",
        "stale_comparison",
        2,
    )
    assert (
        "version 2 of kpi is promoted by now, and it was compared with version 1" in (await stored.messages(job.id))[-3]
    )
    _, against_base = await ended(stored, project, found(current=None), on_reject="keep")
    assert against_base is not None
    assert against_base.gate is not None
    assert against_base.gate["code"] == "stale_comparison"


async def test_of_two_that_end_at_once_one_is_promoted_and_the_other_is_stale(stored: World) -> None:
    project = await stored.project()
    both = await asyncio.gather(*(ended(stored, project, found()) for _ in range(2)))
    verdicts = sorted((version.version, version.verdict) for _, version in both if version)
    assert verdicts == [(1, "promoted"), (2, "not_promoted")]
    assert await promoted(stored) == 1


async def test_against_the_base_what_is_promoted_meanwhile_does_not_matter(stored: World) -> None:
    project = await stored.project()
    plain = {"gate": {"metric": "exact_match", "better_than": "base"}}
    for _ in range(2):
        await ended(stored, project, found(better_than="base"), **plain)
    assert await promoted(stored) == 2


async def test_without_a_name_there_is_a_verdict_and_no_promotion(stored: World) -> None:
    job, version = await ended(stored, await stored.project(), found(), suffix=None, on_reject="fail")
    assert version is not None
    assert (job.status, version.verdict, version.gate and version.gate["code"]) == (
        "succeeded",
        "not_promoted",
        "unnamed",
    )


async def test_the_promoted_version_is_fetched_for_the_run(stored: World) -> None:
    project = await stored.project()
    _, first = await ended(stored, project, found())
    assert first is not None
    asked: dict[str, Any] = {"status": "queued", "suffix": "kpi", "data": {"validation_split": 0.2}}
    for better_than, needed in (("current", True), ("base", False)):
        job_id = await stored.job(project, evaluation={"gate": {"metric": "loss", "better_than": better_than}}, **asked)
        async with stored.database.transaction() as db:
            job = await stored.get(job_id)
            compare = await gate.comparison(db, job)
        assert compare is not None
        assert (compare.adapter.id, compare.adapter.manifest_sha256, compare.needed) == (
            first.model, first.manifest_sha256, needed)  # fmt: skip
    home = folder.of(stored.settings, job_id)
    step = folder.step_files(home, stored.settings, job, compare)["fetch"]
    assert isinstance(step, FetchStep)
    assert step.compare == compare
    assert '"compare"' not in folder.step_files(home, stored.settings, job)["fetch"].text()
    async with stored.database.transaction() as db:
        adapter = (await db.execute(select(Adapter))).scalar_one()
        await history.record(db, adapter, None, "deletion", history.Actor(), "")
        assert await gate.comparison(db, job) is None
