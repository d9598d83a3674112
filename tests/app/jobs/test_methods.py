"""Techniques and methods as the official client asks for them."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from app.db import Database
from app.models import Job
from tests.app.conftest import DATASET, MODEL
from tests.app.jobs.factory import create

pytestmark = pytest.mark.db


async def spec_of(db: Database, job_id: str) -> dict[str, Any]:
    """A job as it is stored."""
    async with db.transaction() as session:
        return dict((await session.get_one(Job, job_id)).spec)


async def test_preferences_are_asked_for_as_openai_has_it(client: OpenAI, db: Database) -> None:
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=DATASET, method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    )
    assert job.method is not None
    assert job.method.type == "dpo"
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2
    spec = await spec_of(db, job.id)
    assert (spec["data"]["format"], spec["hyperparameters"]["beta"]) == ("preference", 0.2)


@pytest.mark.parametrize("technique", ["qlora", "full"])
async def test_a_technique_is_taken_and_shown(client: OpenAI, db: Database, technique: str) -> None:
    job_id = create(client, extra_body={"technique": technique})
    assert (client.fine_tuning.jobs.retrieve(job_id).model_extra or {})["technique"] == technique
    assert (await spec_of(db, job_id))["technique"] == technique
