"""One attempt against a real receiver: signature, what counts as taken, what is never done; and the schedule."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import openai
import pytest

from app.settings import Settings
from app.webhooks import delivery
from app.webhooks.delivery import FAST, SLOW, Sender, next_delay
from tests.app.worker.receiver import Receiver, receiving

pytestmark = pytest.mark.unit

OLD = "whsec_" + "b2xkLXNlY3JldC1vbGQtc2VjcmV0LW9sZC1zZWNyZXQ="
NEW = "whsec_" + "bmV3LXNlY3JldC1uZXctc2VjcmV0LW5ldy1zZWNyZXQ="
BODY = json.dumps(
    {"id": "evt_1", "object": "event", "type": "fine_tuning.job.succeeded", "created_at": 1, "data": {"id": "ftjob-é"}}
).encode()


async def send(receiver: Receiver, **changes: Any) -> delivery.Outcome:
    signed = delivery.headers("evt_1", BODY, datetime.now(UTC), [NEW, OLD])
    options = {"webhook_allow": receiver.allow, "webhook_timeout": 5.0} | changes
    url = options.pop("url", receiver.url)
    sender = Sender(Settings(**options))
    try:
        return await sender.attempt(url, BODY, signed)
    finally:
        await sender.close()


@pytest.mark.parametrize("secret", [OLD, NEW])
async def test_the_official_client_verifies_it_with_any_valid_secret(secret: str) -> None:
    with receiving() as receiver:
        outcome = await send(receiver)
    assert outcome.delivered
    (got,) = receiver.received
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    event = client.webhooks.unwrap(got.body, got.headers)
    assert (event.id, event.type, event.data.id) == ("evt_1", "fine_tuning.job.succeeded", "ftjob-é")
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    client.close()


@pytest.mark.parametrize("status", [300, 302, 307, 400, 401, 404, 409, 410, 429, 500, 503])
async def test_only_a_2xx_counts_as_taken(status: int) -> None:
    with receiving((status, {"location": "http://169.254.169.254/"}, b"no"), 200) as receiver:
        outcome = await send(receiver)
    assert (outcome.delivered, outcome.status, outcome.head) == (False, status, "no")
    assert len(receiver.received) == 1


async def test_a_receiver_that_hangs_is_given_up() -> None:
    with receiving("hang") as receiver:
        outcome = await send(receiver, webhook_timeout=0.3)
    assert (outcome.status, outcome.error) == (None, "no answer within 0.3 s")


async def test_a_receiver_that_closes_has_not_taken_it() -> None:
    with receiving("close") as receiver:
        outcome = await send(receiver)
    assert outcome.status is None
    assert outcome.error


async def test_of_a_gigabyte_only_the_first_kilobyte_is_read() -> None:
    with receiving("flood") as receiver:
        outcome = await send(receiver)
    assert (outcome.delivered, outcome.head) == (True, "x" * 1024)


async def test_an_address_that_is_not_allowed_is_never_connected_to() -> None:
    with receiving() as receiver:
        for url in (receiver.url, f"http://[::ffff:127.0.0.1]:{receiver.port}/", f"http://2130706433:{receiver.port}/"):
            outcome = await send(receiver, url=url, webhook_allow=[])
            assert "LLAMAFLOW_WEBHOOK_ALLOW" in str(outcome.error)
    assert receiver.received == []


async def test_it_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved once: what the resolver says afterwards (DNS rebinding) is not asked for."""
    asked: list[str] = []

    async def resolve(host: str, port: int, param: str) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    monkeypatch.setattr("app.webhooks.target._resolve", resolve)
    with receiving() as receiver:
        named = f"http://hooks.example:{receiver.port}/hook"
        outcome = await send(receiver, url=named, webhook_allow=[f"hooks.example:{receiver.port}"])
    assert outcome.delivered
    assert asked == ["hooks.example"]
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"


def delays(statuses: list[int | None]) -> list[float | None]:
    return [next_delay(statuses[: n + 1]) for n in range(len(statuses))]


def test_a_wrong_answer_is_tried_again_by_the_slow_schedule() -> None:
    assert delays([400] * 7) == [*SLOW, None]


def test_what_may_pass_is_tried_again_quickly_first() -> None:
    assert delays([None, 404, 409, 429, 503, 503]) == [*FAST, SLOW[1]]
    assert delays([503] * 11) == [*FAST, *SLOW[1:], None]


def test_the_quick_tries_are_not_lost_on_a_wrong_answer_between() -> None:
    assert delays([503, 400, 503]) == [FAST[0], SLOW[1], FAST[1]]
