"""Clients that ask for pause, resume and cancel at random moments, to the end of each job: whatever was accepted last comes true."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.models import FINAL
from tests.app.worker.services import World
from tests.fault.asking import MODEL, Asks, asking, project
from tests.fault.audit import audit
from tests.fault.scene import Behave

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(1500)]

JOBS = 14
AT_ONCE = 2
ASKED = 12
"""Times that a job is meddled with; then it is only asked to go on."""
CODES = {"job_not_cancellable", "job_not_pausable", "job_not_resumable"}


@pytest_asyncio.fixture
async def asks(stored: World) -> AsyncIterator[Asks]:
    async with asking(stored) as made:
        yield made


async def meddle(asks: Asks, job_id: str, dice: random.Random) -> bool:
    """Ask for things until the job has ended; whether a cancel was accepted."""
    cancelled, fatal = False, dice.choice([None, dice.randrange(ASKED)])
    for number in itertools.count():
        if (await asks.world.get(job_id)).status in FINAL:
            break
        await asyncio.sleep(dice.choice([0.0, 0.05, 0.3, 1.0, 3.0]))
        action = "cancel" if number == fatal else dice.choice(["pause", "resume"]) if number < ASKED else "resume"
        answer = await asks(job_id, action)
        if answer.status_code == 200:
            cancelled = cancelled or action == "cancel"
        else:
            assert (answer.status_code, answer.json()["error"]["code"] in CODES) == (400, True), answer.text
    return cancelled


@pytest.mark.parametrize("seed", [1, 2])
async def test_whoever_meddles_an_accepted_cancel_never_ends_succeeded(
    stored: World, stub_tasks: Behave, asks: Asks, seed: int
) -> None:
    stub_tasks(seconds="1")
    made = await project(stored)
    async with stored.working(worker_slots=AT_ONCE):
        free = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> tuple[str, bool]:
            async with free:
                job_id = await stored.job(made, model=MODEL)
                return job_id, await meddle(asks, job_id, random.Random(f"{seed} {number}"))

        cancelled = dict(await asyncio.gather(*(one(number) for number in range(JOBS))))
        left = {job: stored.keys(f"model/{job}/") for job, gone in cancelled.items() if gone}
        assert not any(left.values()), {job: (keys, await stored.messages(job)) for job, keys in left.items() if keys}
        found = await audit(stored, ends=("succeeded", "cancelled"))
    assert {job: found[job].status == "cancelled" for job in cancelled} == cancelled
    assert len(set(cancelled.values())) == 2, "the dice met one case only"
