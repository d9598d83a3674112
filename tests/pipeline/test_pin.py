"""Which objects an address means when the pipeline is run by hand, on a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune import plan
from finetune.exit_codes import StepError

pytestmark = pytest.mark.pipeline


def pin(storage: Any, uri: str) -> list[tuple[str, str | None, int | None]]:
    return [(row.uri, row.etag, row.size) for row in plan.pin(uri, storage.access, Path(), "input")]


def test_one_object_is_pinned_by_etag_and_size(storage: Any) -> None:
    etag = storage.put("pin/one.anything", b"12345")
    assert pin(storage, storage.uri("pin/one.anything")) == [(storage.uri("pin/one.anything"), etag, 5)]


def test_a_prefix_takes_dataset_files_in_order_and_nothing_else(storage: Any) -> None:
    for name in ("b.csv", "a.jsonl", "c.JSON.GZ", "notes.txt", "model.safetensors", "deeper/d.zst"):
        storage.put(f"pin/many/{name}", b"x")
    found = [uri.removeprefix(storage.uri("pin/many/")) for uri, _, _ in pin(storage, storage.uri("pin/many/"))]
    assert found == ["a.jsonl", "b.csv", "c.JSON.GZ", "deeper/d.zst"]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("pin/hint", "but there are objects below s3://llamaflow-data/pin/hint/ : end it with a slash"),
        ("pin/nowhere", "no object 'pin/nowhere'"),
        ("pin/hint/texts/", "there is no .jsonl"),
        ("pin/empty/", "there is no .jsonl"),
    ],
)
def test_an_address_that_means_nothing_says_what_could_be_meant(storage: Any, key: str, said: str) -> None:
    storage.put("pin/hint/rows.jsonl", b"{}")
    storage.put("pin/hint/texts/readme.txt", b"x")
    with pytest.raises(StepError) as caught:
        pin(storage, storage.uri(key))
    assert (caught.value.code.name, caught.value.param) == ("file_not_found", "input")
    assert said in caught.value.message
