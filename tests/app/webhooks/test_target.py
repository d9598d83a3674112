"""Every spelling of an address that callbacks must not reach is refused; what the settings name, and the public net, is not."""

from __future__ import annotations

import pytest

from app.errors import BadRequest
from app.webhooks import target

pytestmark = pytest.mark.unit

FORBIDDEN = {
    "http://127.0.0.1:5678/x": "loopback",
    "http://127.1/": "loopback",
    "http://2130706433/": "loopback",
    "http://0x7f000001/": "loopback",
    "http://0x7f.1/": "loopback",
    "http://0177.0.0.1/": "loopback",
    "http://localhost/": "loopback",
    "http://LOCALHOST./": "loopback",
    "http://[::1]/": "loopback",
    "http://[::ffff:127.0.0.1]/": "loopback",
    "http://[::ffff:7f00:1]/": "loopback",
    "http://[::127.0.0.1]/": "loopback",
    "http://[64:ff9b::7f00:1]/": "loopback",
    "http://[2002:7f00:1::]/": "loopback",
    "http://0.0.0.0/": "unspecified",
    "http://0/": "unspecified",
    "http://[::]/": "unspecified",
    "http://169.254.169.254/latest/meta-data/": "metadata",
    "http://[::ffff:169.254.169.254]/": "metadata",
    "http://[64:ff9b::a9fe:a9fe]/": "metadata",
    "http://[fd00:ec2::254]/": "metadata",
    "http://169.254.10.1/": "link-local",
    "http://[fe80::1]/": "link-local",
    "http://10.0.0.1/": "private",
    "http://172.16.0.1/": "private",
    "http://192.168.1.1/": "private",
    "http://[fc00::1]/": "private",
    "http://100.64.0.1/": "not public",
    "http://100.100.100.200/": "metadata",
    "http://192.0.0.192/": "metadata",
    "http://198.18.0.1/": "private",
    "http://224.0.0.1/": "multicast",
    "http://[ff02::1]/": "multicast",
    "http://240.0.0.1/": "private",
    "http://255.255.255.255/": "private",
}

MALFORMED = (
    "ftp://example.org/",
    "javascript:alert(1)",
    "example.org/hook",
    "http://",
    "http:///path",
    "http://user:secret@example.org/",
    "http://example.org:99999/",
    "http://example.org:0/",
    "http://[::1/",
    "http://[fe80::1%25eth0]/",
    "http://exa mple.org/",
    "http://example.org\r\nX-Header: 1/",
    "http://example.org\\@127.0.0.1/",
    "http://bücher.example/",
    "http://999999999999/",
    "http://example.org/" + "a" * 3000,
)


@pytest.mark.parametrize(("url", "why"), FORBIDDEN.items())
async def test_an_address_that_is_not_public_is_refused_with_the_way_out(url: str, why: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await target.check(url, [])
    assert (refused.value.code, refused.value.param) == ("callback_not_allowed", "callback_url")
    assert why in refused.value.message
    assert "LLAMAFLOW_WEBHOOK_ALLOW=" in refused.value.message


@pytest.mark.parametrize("url", MALFORMED)
async def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    with pytest.raises(BadRequest) as refused:
        await target.check(url, ["example.org:80"])
    assert refused.value.code == "invalid_value"


@pytest.mark.parametrize("url", ["http://127.0.0.1:5678/x", "http://localhost:5678/x"])
async def test_the_refusal_of_a_loopback_url_names_the_setting_of_n8n(url: str) -> None:
    with pytest.raises(BadRequest, match="WEBHOOK_URL of n8n"):
        await target.check(url, ["127.0.0.1:5679"])


async def test_a_private_address_has_nothing_to_do_with_the_setting_of_n8n() -> None:
    with pytest.raises(BadRequest) as refused:
        await target.check("http://10.1.2.3/", [])
    assert "n8n" not in refused.value.message


@pytest.mark.parametrize("url", ["https://1.1.1.1/hook", "http://[2606:4700:4700::1111]:8080/hook"])
async def test_a_public_address_is_allowed_and_is_the_one_to_connect_to(url: str) -> None:
    found = await target.check(url, [])
    assert found.addresses == (found.host,)
    assert found.port == (8080 if ":8080" in url else 443)


@pytest.mark.parametrize("entry", ["localhost:5678", "127.0.0.1:5678", " LocalHost:5678 "])
async def test_what_the_setting_names_is_allowed_by_name_or_by_address(entry: str) -> None:
    found = await target.check("http://localhost:5678/webhook-waiting/1", [entry])
    assert "127.0.0.1" in found.addresses


async def test_only_the_addresses_that_are_allowed_are_connected_to() -> None:
    found = await target.check("http://localhost:5678/", ["127.0.0.1:5678"])
    assert set(found.addresses) == {"127.0.0.1"}


async def test_an_ipv6_entry_is_written_in_brackets() -> None:
    assert (await target.check("http://[::1]:81/", ["[::1]:81"])).addresses == ("::1",)


async def test_another_port_of_an_allowed_host_is_not_allowed() -> None:
    with pytest.raises(BadRequest):
        await target.check("http://127.0.0.1:5433/", ["127.0.0.1:5678"])


async def test_a_name_that_does_not_resolve_is_accepted_with_no_address() -> None:
    assert (await target.check("http://no-such-host.invalid/hook", [])).addresses == ()
