"""One attempt of a delivery: sign the stored bytes anew, check the address again, POST to exactly that address; and when to try again.

Standard Webhooks (https://www.standardwebhooks.com): headers webhook-id, webhook-timestamp, webhook-signature. Sends; writes
no table. What a receiver answers is never followed, and read to the first KiB only.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook

from app.errors import ApiError
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


async def attempt(url: str, body: bytes, signed: dict[str, str], *, allow: list[str], seconds: float) -> Outcome:
    """POST once.

    Args:
        url: The receiver.
        body: The stored bytes.
        signed: As made by `headers`.
        allow: `host:port` entries that may be reached although not public.
        seconds: For everything, from resolving the name to the first KiB of the answer.
    """
    began = time.monotonic()

    def outcome(status: int | None, error: str | None, head: str | None = None) -> Outcome:
        return Outcome(status, error, round((time.monotonic() - began) * 1000), head)

    try:
        async with asyncio.timeout(seconds):
            checked = await target.check(url, allow)
            if not checked.addresses:
                return outcome(None, f"{checked.host} does not resolve")
            status, head = await _post(checked, body, signed, seconds)
    except TimeoutError:
        return outcome(None, f"no answer within {seconds:g} s")
    except ApiError as refused:
        return outcome(None, refused.message)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as problem:
        return outcome(None, f"{type(problem).__name__}: {problem}"[:300])
    return outcome(status, _failure(status), head)


async def _post(checked: target.Target, body: bytes, signed: dict[str, str], seconds: float) -> tuple[int, str]:
    """POST to the first address that was checked, under the receiver's own name."""
    parts = urlsplit(checked.url)
    address = ipaddress.ip_address(checked.addresses[0])
    shown = f"[{address}]" if address.version == 6 else str(address)
    pinned = parts._replace(netloc=f"{shown}:{checked.port}", fragment="").geturl()
    sent = signed | {"host": parts.netloc}
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=seconds) as client,
        client.stream(
            "POST", pinned, content=body, headers=sent, extensions={"sni_hostname": checked.host}
        ) as response,
    ):
        head = b""
        async for chunk in response.aiter_raw():
            head += chunk
            if len(head) >= HEAD_BYTES:
                break
        return response.status_code, head[:HEAD_BYTES].decode(errors="replace").replace("\x00", "")


def _failure(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return f"redirects are not followed ({status})" if 300 <= status < 400 else f"answered {status}"
