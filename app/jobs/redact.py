"""Secrets taken out of text that others wrote: the settings' own by value, and what looks like a key, a token or a signature.

Pure. A secret that reaches over the border of a piece is found too, if the piece is given with what stands around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from app.settings import Settings

REDACTED = b"[redacted]"
SHORTEST = 6
"""Characters of a secret; a shorter one is a word of any text."""
PATTERNS = (
    rb"lf-[A-Za-z0-9_-]{20,}",  # our API keys
    rb"whsec_[A-Za-z0-9+/=]{16,}",
    rb"hf_[A-Za-z0-9]{20,}",
    rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    rb"(?i:(?<=x-amz-signature=)|(?<=x-amz-credential=)|(?<=x-amz-security-token=))[^&\s\"'<>]+",
    rb"(?i:(?<=aws_secret_access_key=)|(?<=aws_session_token=)|(?<=aws_secret_access_key = )|(?<=aws_session_token = ))\S+",
    rb"(?i:(?<=authorization: bearer )|(?<=authorization: basic ))\S+",
    rb"(?i:(?<=bearer ))[^\s\"',;\\]{8,}",
    rb"(?i:(?<=[?&]signature=)|(?<=[?&]awsaccesskeyid=)|(?<=[?&]token=)|(?<=[?&]api_key=)|(?<=password=))[^&\s\"'<>]+",
    rb"(?<=://)[^\s/@:]{1,256}:[^\s/@]{1,1024}(?=@)",  # user:password of an address
)


class Redactor:
    """Takes secrets out.

    Args:
        secrets: To be found by value, as they are and as an address quotes them.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {form for secret in secrets if len(secret) >= SHORTEST for form in (secret, quote(secret, safe=""))}
        values = [re.escape(form.encode()) for form in sorted(known, key=len, reverse=True)]
        self._secret = re.compile(b"|".join([*values, *PATTERNS]))

    @classmethod
    def of(cls, settings: Settings) -> Redactor:
        """One that knows every secret among the settings, the database's password too."""
        given = [value for value in vars(settings).values() if isinstance(value, SecretStr)]
        plain = [value.get_secret_value() for value in given if value is not settings.database_url]
        if settings.database_url is not None:
            plain.append(urlsplit(settings.database_url.get_secret_value()).password or "")
        return cls(plain)

    def redacted(self, data: bytes, start: int = 0, end: int | None = None) -> bytes:
        """`data[start:end]` without the secrets in it, those that begin before or end behind it included."""
        end = len(data) if end is None else end
        parts, at = [], start
        for found in self._secret.finditer(data):
            if found.end() <= start:
                continue
            if found.start() >= end:
                break
            parts += [data[at : max(at, found.start())], REDACTED if found.start() >= start else b""]
            at = min(found.end(), end)
        return b"".join([*parts, data[at:end]])
