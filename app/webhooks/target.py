"""Where callbacks may go: the check of a URL when it is given, and again, on the resolved address, before each connect.

Loopback, private, link-local, metadata and reserved addresses are refused in every spelling unless the settings name them.
Resolves names; sends nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.errors import BadRequest

RESOLVE_SECONDS = 3.0
MAX_LENGTH = 2048
METADATA = {
    ipaddress.ip_address(text) for text in ("169.254.169.254", "192.0.0.192", "100.100.100.200", "fd00:ec2::254")
}
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Target:
    """A URL that was checked.

    Attributes:
        url: As given.
        host: Its name or address, without brackets.
        port: Given, or the scheme's.
        addresses: Those to connect to, and no others; empty when the name does not resolve now.
    """

    url: str
    host: str
    port: int
    addresses: tuple[str, ...]


async def check(url: str, allow: list[str], param: str = "callback_url") -> Target:
    """Whether callbacks may go to `url`, and to which addresses.

    Args:
        url: What a request or a delivery names.
        allow: `host:port` entries that may be reached although not public: `Settings.webhook_allow`.
        param: The field that names it, for the refusal.
    Raises:
        BadRequest: `invalid_value` for what is no http(s) URL, `callback_not_allowed` for where it leads.
    """
    host, port = parse(url, param)
    found = await _resolve(host, port, param)
    named = f"{host}:{port}" in _entries(allow)
    kept = tuple(a for a in found if named or f"{a}:{port}" in _entries(allow) or why_not(a) is None)
    if found and not kept:
        raise _refusal(url, host, port, found[0], param)
    return Target(url, host, port, kept)


def parse(url: str, param: str = "callback_url") -> tuple[str, int]:
    """Host (lower case, without brackets) and port of a URL.

    Raises:
        BadRequest: `invalid_value`.
    """
    if len(url) > MAX_LENGTH or not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        most = f"at most {MAX_LENGTH} printable ASCII characters without spaces or backslashes"
        raise _invalid(f"must be {most}; encode others", param)
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise _invalid(f"is no URL: {url!r}", param) from None
    if parts.scheme not in ("http", "https"):
        raise _invalid(f"must begin with http:// or https://, not {url!r}", param)
    if parts.username is not None or parts.password is not None:
        raise _invalid("must not hold a user name or password; put a token into the path or query instead", param)
    if not host or "%" in host or port == 0:
        raise _invalid(f"names no host and port that can be reached: {url!r}", param)
    return host, port or (443 if parts.scheme == "https" else 80)


def host_of(url: str) -> str:
    """host:port of a URL that was checked."""
    host, port = parse(url)
    return f"{host}:{port}"


def why_not(address: str) -> str | None:
    """Why an address may not be reached, in a word; None if it is public.

    IPv4 inside IPv6 (mapped, 6to4, Teredo, NAT64) counts as the IPv4 address it leads to.
    """
    ip = ipaddress.ip_address(address)
    for inner in _embedded(ip):
        if (why := why_not(str(inner))) is not None:
            return why
    if ip in METADATA:
        return "a cloud metadata address"
    kinds = (
        (ip.is_unspecified, "an unspecified address"),
        (ip.is_loopback, "a loopback address"),
        (ip.is_link_local, "a link-local address"),
        (ip.is_multicast, "a multicast address"),
        (ip.is_private, "a private address"),
        (ip.is_reserved and ip not in NAT64, "a reserved address"),
        (not ip.is_global, "an address that is not public"),
    )
    return next((word for wrong, word in kinds if wrong), None)


def _embedded(ip: Address) -> list[ipaddress.IPv4Address]:
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    low = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip in NAT64 or (int(ip) >> 32 == 0 and int(ip) > 1):
        found.append(low)
    return [inner for inner in found if inner is not None]


async def _resolve(host: str, port: int, param: str) -> list[str]:
    """The addresses of a host, IPv4 numbers in any spelling included; none if the name is not known now."""
    if re.fullmatch(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*", host):
        try:
            return [socket.inet_ntoa(socket.inet_aton(host))]
        except OSError:
            raise _invalid(f"names no host that can be reached: {host!r}", param) from None
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_SECONDS):
            rows = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return []
    return list(dict.fromkeys(str(row[4][0]).partition("%")[0] for row in rows))


def _entries(allow: list[str]) -> set[str]:
    pairs = (entry.strip().lower().rpartition(":") for entry in allow)
    return {f"{host.strip('[]')}:{port}" for host, _, port in pairs}


def _refusal(url: str, host: str, port: int, address: str, param: str) -> BadRequest:
    why = why_not(address)
    leads = f"leads to {why} ({address})" if host != address else f"is {why}"
    shown = f"[{host}]" if ":" in host else host
    n8n = ""
    if why in ("a loopback address", "an unspecified address"):
        n8n = " If it is n8n's resume URL, set WEBHOOK_URL of n8n to an address this service reaches."
    return BadRequest(
        f"{param} {url} is not allowed: {host} {leads}. To allow it, start the service with "
        f"LLAMAFLOW_WEBHOOK_ALLOW={shown}:{port}.{n8n}",
        code="callback_not_allowed",
        param=param,
    )


def _invalid(what: str, param: str) -> BadRequest:
    return BadRequest(f"{param} {what}.", code="invalid_value", param=param)
