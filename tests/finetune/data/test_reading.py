"""Datasets as bytes: JSON Lines, JSON arrays, gzip, zstd; in any chunks, within limits."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data import reading, unpack
from finetune.data.reading import Flaw, Raw, Source, raw_rows

pytestmark = pytest.mark.unit

values = st.recursive(
    st.none() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
objects = st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), min_size=1, max_size=5)


def read(data: bytes, size: int = 1 << 20) -> list[Raw | Flaw]:
    """The rows of `data`, given in chunks of `size`."""
    return list(raw_rows(Source(data[at : at + size] for at in range(0, len(data), size))))


def parsed(found: list[Raw | Flaw]) -> list[Any]:
    """The JSON values of rows, which must all be rows."""
    return (
        [json.loads(row.data) for row in found if isinstance(row, Raw)]
        if all(isinstance(row, Raw) for row in found)
        else found
    )


@given(objects, st.integers(1, 9), st.sampled_from([None, 1]))
def test_a_json_array_gives_its_elements_in_whatever_chunks_it_comes(
    rows: list[Any], size: int, indent: int | None
) -> None:
    assert parsed(read(json.dumps(rows, indent=indent).encode(), size)) == rows


@given(objects, st.integers(1, 9), st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_json_lines_give_their_lines_in_whatever_chunks_they_come(rows: list[Any], size: int, newline: str) -> None:
    assert parsed(read(newline.join(map(json.dumps, rows)).encode(), size)) == rows


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_read_to_their_end_without_an_exception(data: bytes, size: int) -> None:
    assert all(
        isinstance(row, Raw | Flaw)
        for row in read(data, size) + read(b"[" + data, size) + read(b"\x1f\x8b" + data, size)
    )


def test_rows_know_the_line_they_begin_on() -> None:
    assert [row.line for row in read(b'\n\n{"a":1}\n\n{"a":2}\n{"a":3}')] == [3, 5, 6]
    assert [row.line for row in read(b'\n[\n {"a":\n 1},\n\n {"a":2}, {"a":3}\n]')] == [3, 6, 6]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("pack", [gzip.compress, unpack.zstd.compress])
def test_packed_data_is_undone_member_by_member(pack: Callable[[bytes], bytes], size: int) -> None:
    data = pack(b'{"a":1}\n') + pack(b'{"a":2}\n')
    assert parsed(read(data, size)) == [{"a": 1}, {"a": 2}]


def test_damaged_and_foreign_files_are_named() -> None:
    whole = gzip.compress(b'{"a":1}\n' * 100)
    told = {
        name: read(data)[-1]
        for name, data in {
            "cut": whole[:-9],
            "zip": b"PK\x03\x04..",
            "zst": b"\x28\xb5\x2f\xfd..",
            "utf16": '{"a"'.encode("utf-16"),
        }.items()
    }
    assert "too early" in told["cut"].message  # type: ignore[union-attr]
    assert "zip" in told["zip"].message  # type: ignore[union-attr]
    assert "zstd" in told["zst"].message  # type: ignore[union-attr]
    assert "UTF-16" in told["utf16"].message  # type: ignore[union-attr]


@pytest.mark.parametrize("wrap", [b"%s\n", b"[%s]", b"[[[%s]]]"])
def test_a_row_over_the_limit_is_named_and_not_kept(wrap: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 1000)
    found = read(wrap % (b'"' + b"a" * 100_000 + b'"'), 64)
    assert [(row.line, row.kind) for row in found if isinstance(row, Flaw)] == [(1, "long_row")]


@pytest.mark.parametrize("pack", [gzip.compress, unpack.zstd.compress])
def test_a_bomb_is_refused_after_little(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "EXPANSION_FREE", 1 << 20)
    source = Source(io.BytesIO(pack((b'{"a":"' + b" " * 9000 + b'"}\n') * 4000)))
    assert sum(len(chunk) for chunk in source) < 16 << 20
    assert source.flaw is not None
    assert "200-fold" in source.flaw.message


def test_a_byte_limit_leaves_out_the_row_it_cuts_and_says_so() -> None:
    for data in (b'{"a":1}\n{"a":2}\n{"a":3}\n', b'[{"a":1},\n{"a":2},\n{"a":3}]'):
        source = Source([data], max_bytes=20)
        assert parsed(list(raw_rows(source))) == [{"a": 1}, {"a": 2}]
        assert not source.complete


def test_an_array_that_does_not_end_or_does_not_stop_is_named() -> None:
    assert [row.kind for row in read(b'[{"a":1},\n{"a":2}') if isinstance(row, Flaw)] == ["open_array"]
    assert [row.kind for row in read(b'[{"a":1}]\n{"a":2}') if isinstance(row, Flaw)] == ["after_array"]
