"""Callbacks to where they must not go: every connect of the process is recorded, and none leads there or leaves this machine."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from app.errors import BadRequest
from app.settings import Settings
from app.webhooks import delivery, target
from app.webhooks.delivery import Outcome, Sender
from tests.app.worker.receiver import Receiver, receiving

pytestmark = pytest.mark.fault

SECRET = "whsec_" + "bmV3LXNlY3JldC1uZXctc2VjcmV0LW5ldy1zZWNyZXQ="
METADATA = "169.254.169.254"
SPELLINGS = (
    "127.0.0.1", "2130706433", "017700000001", "0x7f000001", "0x7f.0.0.1", "0177.0.0.01", "127.1", "127.0.1", "0", "localhost",
    "LOCALHOST.", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[2002:7f00:0001::]", "[64:ff9b::7f00:1]",
    "[2001:0:7f00:1:0:0:80ff:fffe]", "[::]", "user@127.0.0.1", "example.org@127.0.0.1", "example.org:80@127.0.0.1",
    "127.0.0.1%00.example.org", "%31%32%37.0.0.1", "\uff11\uff12\uff17.\uff10.\uff10.\uff11", "127\u30020\u30020\u30021",
    "\u2460\u2461\u2466.0.0.1", "127.0.0.1\\.example.org", METADATA, "2852039166", "0xa9fea9fe", "0251.0376.0251.0376",
    "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[fd00:ec2::254]", "[fe80::1]", "100.100.100.200",
    "192.0.0.192", "10.0.0.1", "[fc00::1]", "100.64.0.1",
)  # fmt: skip
"""Of this machine, its network and metadata services."""

_recording: list[list[Any]] = []


def _record(event: str, given: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        for found in _recording:
            found.append(given[1])


sys.addaudithook(_record)  # for the life of the process; it does nothing while no list is there


@pytest.fixture
def connects() -> Iterator[list[Any]]:
    """(host, port) of every connect."""
    found: list[Any] = []
    _recording.append(found)
    yield found
    _recording.remove(found)
    assert {address[0] for address in found if isinstance(address, tuple)} <= {"127.0.0.1"}


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Host → what the name service answers, each time the next."""
    answers: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look(host: Any, port: Any, *args: Any, **given: Any) -> Any:
        if host not in answers:
            return real(host, port, *args, **given)
        found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return answers


async def send(url: str, allow: list[str]) -> Outcome:
    sender = Sender(Settings(webhook_allow=allow, webhook_timeout=5.0))
    outcome = await sender.attempt(url, b"{}", delivery.headers("evt_1", b"{}", datetime.now(UTC), [SECRET]))
    await sender.close()
    return outcome


def reached(connects: list[Any]) -> set[Any]:
    return {address[:2] for address in connects if isinstance(address, tuple)}


async def test_no_spelling_of_an_inner_address_is_connected_to(connects: list[Any]) -> None:
    with receiving() as receiver:
        for spelling in SPELLINGS:
            for url in (f"http://{spelling}:{receiver.port}/", f"https://{spelling}/"):
                outcome = await send(url, [])
                assert (outcome.delivered, outcome.status) == (False, None), url
        assert receiver.received == []
    assert reached(connects) == set()


@pytest.mark.parametrize("inner", ["127.0.0.1", METADATA, "10.0.0.7"])
async def test_a_name_that_was_public_when_the_job_was_made_and_is_not_any_more(
    connects: list[Any], resolver: dict[str, list[list[str]]], inner: str
) -> None:
    resolver["rebound.example"] = [["93.184.215.14"], [inner]]
    assert (await target.check("http://rebound.example/", [])).addresses == ("93.184.215.14",)
    outcome = await send("http://rebound.example/", [])
    assert "LLAMAFLOW_WEBHOOK_ALLOW" in str(outcome.error)
    assert reached(connects) == set()


async def test_a_name_that_changes_between_check_and_connect_is_not_asked_twice(
    connects: list[Any], resolver: dict[str, list[list[str]]]
) -> None:
    with receiving() as receiver:
        resolver["rebound.example"] = [["127.0.0.1"], [METADATA]]
        outcome = await send(f"http://rebound.example:{receiver.port}/", receiver.allow)
    assert outcome.delivered
    assert reached(connects) == {("127.0.0.1", receiver.port)}


async def test_of_several_addresses_only_an_allowed_one_is_connected_to(
    connects: list[Any], resolver: dict[str, list[list[str]]]
) -> None:
    with receiving() as receiver:
        resolver["many.example"] = [[METADATA, "10.0.0.1", "127.0.0.1"]]
        assert (await send(f"http://many.example:{receiver.port}/", receiver.allow)).delivered
    assert reached(connects) == {("127.0.0.1", receiver.port)}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_metadata_is_not_followed(connects: list[Any], status: int) -> None:
    with receiving((status, {"location": f"http://{METADATA}/latest/meta-data/"}, b"")) as receiver:
        outcome = await send(receiver.url, receiver.allow)
    assert (outcome.status, outcome.error) == (status, f"redirects are not followed ({status})")
    assert reached(connects) == {("127.0.0.1", receiver.port)}


async def test_no_proxy_of_the_environment_is_used(connects: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with receiving() as receiver:
        assert (await send(receiver.url, receiver.allow)).delivered
    assert reached(connects) == {("127.0.0.1", receiver.port)}


async def test_a_cookie_of_one_receiver_is_not_told_to_another(connects: list[Any]) -> None:
    def cookie(receiver: Receiver) -> str | None:
        return receiver.received[-1].headers.get("cookie")

    with receiving((200, {"set-cookie": "session=mine; Path=/"}, b"")) as one, receiving() as other:
        sender = Sender(Settings(webhook_allow=[*one.allow, *other.allow], webhook_timeout=5.0))
        signed = delivery.headers("evt_1", b"{}", datetime.now(UTC), [SECRET])
        for receiver in (one, one, other):
            assert (await sender.attempt(receiver.url, b"{}", signed)).delivered
        await sender.close()
        assert (cookie(one), cookie(other)) == (None, None)


def test_a_user_name_is_refused_when_the_job_is_made() -> None:
    with pytest.raises(BadRequest, match="user name"):
        target.parse("http://example.org@127.0.0.1/")
