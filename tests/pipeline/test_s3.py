"""The steps' S3 against a real server: what a failed call is called, and that a changed object is not taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import s3
from finetune.exit_codes import StepError
from finetune.steps import S3

pytestmark = pytest.mark.pipeline


def code_of(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(StepError) as caught:
        call()
    return caught.value.code.name, caught.value.message


def test_what_is_put_comes_back_with_its_sha256(storage: Any, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(b"x" * 3_000_000)
    s3.put(storage.client, tmp_path / "sent", storage.uri("there"))
    seen = s3.head(storage.client, storage.uri("there"))
    sha256, _ = s3.fetch(storage.client, seen.uri, tmp_path / "back", etag=seen.etag, size=seen.size)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "sent").read_bytes()
    assert sha256 == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_another_etag_or_size_is_a_changed_object(storage: Any, tmp_path: Path) -> None:
    storage.put("changed", b"one")
    seen = s3.head(storage.client, storage.uri("changed"))
    storage.put("changed", b"two")
    for pinned in ({"etag": seen.etag}, {"size": 99}):
        name, said = code_of(lambda pinned=pinned: s3.fetch(storage.client, seen.uri, tmp_path / "x", **pinned))
        assert (name, seen.uri in said) == ("object_changed", True)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://llamaflow-data/not/there", "no object 'not/there' in bucket 'llamaflow-data'"),
        ("s3://no-such-bucket/x", "no bucket 'no-such-bucket'"),
    ],
)
def test_what_is_missing_is_named(storage: Any, tmp_path: Path, uri: str, said: str) -> None:
    for call in (lambda: s3.head(storage.client, uri), lambda: s3.fetch(storage.client, uri, tmp_path / "x")):
        name, message = code_of(call)
        assert name == "file_not_found"
        assert said in message


def test_a_wrong_secret_is_refused(storage: Any, tmp_path: Path) -> None:
    file = tmp_path / "wrong.env"
    file.write_text(Path(storage.access.credentials_file).read_text().replace(storage.secret, "x" * 40))
    client = s3.client(S3(credentials_file=str(file)))
    storage.put("closed", b"x")
    for call in (lambda: s3.head(client, storage.uri("closed")), lambda: s3.listing(client, storage.uri(""))):
        assert code_of(call)[0] == "access_denied"


def test_a_server_that_is_away_is_unavailable(storage: Any) -> None:
    client = s3.client(storage.access.model_copy(update={"endpoint": "http://127.0.0.1:9"}), attempts=1)
    assert code_of(lambda: s3.head(client, storage.uri("x")))[0] == "s3_unavailable"


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    storage.put("near", b"x")
    assert s3.head(s3.client(storage.access, attempts=1), storage.uri("near")).size == 1


def test_a_listing_is_sorted_and_leaves_markers_out(storage: Any) -> None:
    for key in ("list/b.jsonl", "list/a.jsonl", "list/sub/"):
        storage.put(key, b"")
    assert [row.uri for row in s3.listing(storage.client, storage.uri("list/"))] == [
        storage.uri("list/a.jsonl"),
        storage.uri("list/b.jsonl"),
    ]
