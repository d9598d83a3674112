"""One attempt of a delivery: sign the stored bytes anew, check the address again, POST to exactly that address; and when to try again.

Standard Webhooks (https://www.standardwebhooks.com): headers webhook-id, webhook-timestamp, webhook-signature. Sends; writes
no table. What a receiver answers is never followed, its cookies are not kept, and only the first KiB is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook

from app.errors import ApiError
from app.settings import Settings
from app.webhooks import target

FAST = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds after a failure that may pass at once: n8n's resume URL may not be there yet when a short job ends."""

SLOW = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Seconds after every other failure; after the last one the delivery is dead."""

HEAD_BYTES = 1024


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        status: The answer's, None without one.
        error: Why it counts as failed; None for a 2xx.
        latency_ms: Until the answer, or the failure.
        head: The first KiB of the answer.
    """

    status: int | None
    error: str | None
    latency_ms: int
    head: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.error is None

    @property
    def ends(self) -> bool:
        """Whether the receiver wants no more, by a 410."""
        return self.status == 410

    @property
    def host_failed(self) -> bool:
        """Whether it speaks against the host, not against this delivery alone: no answer, 429, 5xx."""
        return self.status is None or self.status == 429 or self.status >= 500


def passes_soon(status: int | None) -> bool:
    """Whether a failure may pass within seconds: no answer, 404, 409, 429, 5xx."""
    return status is None or status in (404, 409, 429) or status >= 500


def next_delay(statuses: Sequence[int | None]) -> float | None:
    """Seconds from the last failure to the next attempt; None when it is dead.

    Args:
        statuses: The answers of all failed attempts so far, oldest first.
    """
    fast = slow = 0
    delay: float | None = None
    for status in statuses:
        if passes_soon(status) and fast < len(FAST):
            delay, fast = FAST[fast], fast + 1
            continue
        slow = max(slow, 1) if fast else slow  # the quick ones have taken the first slow one's place
        delay, slow = (SLOW[slow], slow + 1) if slow < len(SLOW) else (None, slow)
    return delay


def headers(event_id: str, body: bytes, at: datetime, secrets: Iterable[str]) -> dict[str, str]:
    """The signed headers of an attempt.

    Args:
        event_id: Stays the same on every attempt.
        body: The bytes as they are sent.
        at: Now, in UTC; receivers refuse one that is 300 s off.
        secrets: Every valid one, newest first: while a secret is rotated a receiver may hold the old one.
    """
    signatures = [Webhook(secret).sign(event_id, at, body.decode()) for secret in secrets]
    return {
        "content-type": "application/json",
        "user-agent": "LlamaFlow-Webhooks/1",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


class Sender:
    """Sends attempts: one TLS context for all, a connection for each, since each is made to the address just checked.

    Environment, cookies and redirects are unknown to the transport it uses.

    Args:
        settings: `webhook_allow`, `webhook_timeout`, `webhook_ca_file`.
    Raises:
        RuntimeError: The file of certificate authorities cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._allow, self._seconds = settings.webhook_allow, settings.webhook_timeout
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(verify=_context(settings), trust_env=False, limits=limits)

    async def close(self) -> None:
        """Hang up."""
        await self._transport.aclose()

    async def attempt(self, url: str, body: bytes, signed: dict[str, str]) -> Outcome:
        """POST once; `webhook_timeout` holds for everything, from resolving the name to the first KiB of the answer.

        Args:
            url: The receiver.
            body: The stored bytes.
            signed: As made by `headers`.
        """
        began = time.monotonic()

        def outcome(status: int | None, error: str | None, head: str | None = None) -> Outcome:
            return Outcome(status, error, round((time.monotonic() - began) * 1000), head)

        try:
            async with asyncio.timeout(self._seconds):
                checked = await target.check(url, self._allow)
                if not checked.addresses:
                    return outcome(None, f"{checked.host} does not resolve")
                status, head = await self._post(checked, body, signed)
        except TimeoutError:
            return outcome(None, f"no answer within {self._seconds:g} s")
        except ApiError as refused:
            return outcome(None, refused.message)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as problem:
            return outcome(None, f"{type(problem).__name__}: {problem}"[:300])
        return outcome(status, _failure(status), head)

    async def _post(self, checked: target.Target, body: bytes, signed: dict[str, str]) -> tuple[int, str]:
        """POST to the first address that was checked, under the receiver's own name, which its certificate must hold."""
        parts = urlsplit(checked.url)
        address = ipaddress.ip_address(checked.addresses[0])
        shown = f"[{address}]" if address.version == 6 else str(address)
        pinned = parts._replace(netloc=f"{shown}:{checked.port}", fragment="").geturl()
        sent = signed | {"host": parts.netloc}
        known = {"sni_hostname": checked.host, "timeout": httpx.Timeout(self._seconds).as_dict()}
        response = await self._transport.handle_async_request(
            httpx.Request("POST", pinned, content=body, headers=sent, extensions=known)
        )
        head = b""
        try:
            async for chunk in response.aiter_raw():
                head += chunk
                if len(head) >= HEAD_BYTES:
                    break
        finally:
            await response.aclose()
        return response.status_code, head[:HEAD_BYTES].decode(errors="replace").replace("\x00", "")


def _context(settings: Settings) -> ssl.SSLContext:
    context = httpx.create_ssl_context(trust_env=False)
    if settings.webhook_ca_file is not None:
        try:
            context.load_verify_locations(cafile=settings.webhook_ca_file)
        except OSError as problem:  # ssl.SSLError is one
            named = f"LLAMAFLOW_WEBHOOK_CA_FILE (or SSL_CERT_FILE) {settings.webhook_ca_file}"
            raise RuntimeError(f"{named} holds no certificates that can be read: {problem}") from problem
    return context


def _failure(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return f"redirects are not followed ({status})" if 300 <= status < 400 else f"answered {status}"
