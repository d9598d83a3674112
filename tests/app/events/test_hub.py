"""What a channel keeps of a job's events, and how it wakes those who follow it."""

from __future__ import annotations

import asyncio

import pytest

from app.events import hub
from app.events.hub import Channel, Told

pytestmark = pytest.mark.unit

FOREVER = 1e6


def told(*numbers: int) -> list[Told]:
    return [Told(number, b"%d " % number) for number in numbers]


async def test_what_is_behind_a_number_is_joined_once_for_all_that_stand_there() -> None:
    channel = Channel(FOREVER)
    channel.tell(told(1, 2, 3), last=3, ended=False)
    found = channel.after(1)
    assert found == Told(3, b"2 3 ")
    assert channel.after(1) is found
    channel.tell(told(4), last=4, ended=False)
    assert channel.after(1) == Told(4, b"2 3 4 ")
    assert channel.after(4) == Told(4, b"")
    channel.close()


async def test_what_is_not_kept_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "RECENT", 2)
    channel = Channel(FOREVER)
    channel.tell(told(1, 2, 3), last=3, ended=False)
    assert (channel.after(0), channel.after(1)) == (None, Told(3, b"2 3 "))
    channel.tell(told(7), last=7, ended=False)  # 4 to 6 were never read
    assert (channel.after(3), channel.after(6)) == (None, Told(7, b"7 "))
    channel.tell([], last=9, ended=True)  # 8 and 9 are not there any more
    assert (channel.after(7), channel.after(9)) == (None, Told(9, b""))
    channel.close()


async def test_followers_are_woken_some_at_a_time_and_what_came_meanwhile_wakes_the_rest_once() -> None:
    channel = Channel(FOREVER)
    waiting = [channel.news() for _ in range(3 * hub.AT_ONCE)]

    def woken() -> int:
        return sum(each.done() for each in waiting)

    channel.tell(told(1), last=1, ended=False)
    assert woken() == hub.AT_ONCE
    late = channel.news()
    channel.tell(told(2), last=2, ended=False)
    assert (woken(), late.done()) == (hub.AT_ONCE, False)
    await asyncio.sleep(0)
    assert woken() == 2 * hub.AT_ONCE
    await late
    assert (woken(), late.result()) == (3 * hub.AT_ONCE, True)
    channel.close()


async def test_silence_wakes_without_news_and_who_went_is_left_alone() -> None:
    channel = Channel(0.01)
    gone, waiting = channel.news(), channel.news()
    gone.cancel()
    assert await waiting is False
    assert await channel.news() is False
    channel.close()
