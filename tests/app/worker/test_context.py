"""A hand's rest ends by word, by time, or by a cancellation, which is never lost."""

from __future__ import annotations

import asyncio

import pytest

from app.worker.claim import Claim
from app.worker.context import Hand

pytestmark = pytest.mark.unit


async def test_a_cancellation_at_the_moment_of_a_word_is_not_lost() -> None:
    for turns in range(6):
        hand = Hand(Claim("ftjob-1", 1, None))
        resting = asyncio.create_task(_rest_for_ever(hand))
        await asyncio.sleep(0.01)
        hand.wake.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        resting.cancel()
        done, _ = await asyncio.wait([resting], timeout=5)
        assert done, f"it rests on, {turns} turns of the loop after the word"


async def _rest_for_ever(hand: Hand) -> None:
    while True:
        await hand.rest(60)
