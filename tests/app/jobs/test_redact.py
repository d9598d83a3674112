"""Secrets are taken out of text that others wrote, also where a piece ends in the middle of one."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from app.jobs.redact import Redactor
from app.settings import Settings

pytestmark = pytest.mark.unit

SETTINGS = Settings(
    database_url=SecretStr("postgresql://flow:s3cr3t-of-db@127.0.0.1:5432/flow"),
    s3_access_key=SecretStr("minio-access"),
    s3_secret_key=SecretStr("very/secret+key=="),
    hf_token=SecretStr("not-shaped-like-one"),
    engine_token=SecretStr("engine-token-1"),
    api_key=SecretStr("short"),
)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("password s3cr3t-of-db!", "password [redacted]!"),
        ("key very/secret+key== end", "key [redacted] end"),
        ("?k=very%2Fsecret%2Bkey%3D%3D&x=1", "?k=[redacted]&x=1"),
        ("not-shaped-like-one engine-token-1", "[redacted] [redacted]"),
        ("lf-" + "aB3_" * 10, "[redacted]"),
        ("whsec_" + "NjRo" * 10 + "==", "[redacted]"),
        ("hf_" + "x" * 30, "[redacted]"),
        ("id AKIAIOSFODNN7EXAMPLE.", "id [redacted]."),
        ("https://s3/x?X-Amz-Signature=0a1b2c&X-Amz-Date=1", "https://s3/x?X-Amz-Signature=[redacted]&X-Amz-Date=1"),
        ("x-amz-security-token=abc/def", "x-amz-security-token=[redacted]"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ("AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY=[redacted]"),
        ("postgres://me:pw@db/x", "postgres://[redacted]@db/x"),
        ("short words, lf-short, hf_x, s3://bucket/key@1 and 12:30", None),
    ],
)
def test_what_is_a_secret_is_not_shown(said: str, shown: str | None) -> None:
    assert Redactor.of(SETTINGS).redacted(said.encode()).decode() == (said if shown is None else shown)


def test_every_cut_of_a_text_hides_the_secret_in_it() -> None:
    redactor = Redactor(["abcdefgh"])
    text = b"one abcdefgh two abcdefgh"
    whole = redactor.redacted(text)
    assert whole == b"one [redacted] two [redacted]"
    for cut in range(len(text) + 1):
        assert redactor.redacted(text, 0, cut) + redactor.redacted(text, cut) == whole
