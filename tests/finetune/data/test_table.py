"""CSV with a known header is a dataset like any other; what is no such table is read as JSON Lines, and refused as such."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Data
from finetune.data.formats import Report, check, rows
from finetune.data.reading import Flaw, Raw, Source, raw_rows
from finetune.data.row import Message, Row

pytestmark = pytest.mark.unit

cells = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1),
        st.text('a;,"\n\té', min_size=1),
    ),
    min_size=1,
    max_size=5,
)


def written(table: list[tuple[str, ...]], header: tuple[str, ...] = ("prompt", "completion"), **how: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, **how).writerows([header, *table])
    return text.getvalue().encode()


def read(data: bytes, size: int = 1 << 20) -> list[Raw | Flaw]:
    return list(raw_rows(Source(data[at : at + size] for at in range(0, len(data), size))))


def report(data: bytes) -> Report:
    return check(io.BytesIO(data), Data())


@given(cells, st.integers(1, 40), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_a_table_gives_its_rows_in_whatever_chunks_it_comes(
    table: list[tuple[str, str]], size: int, delimiter: str, newline: str
) -> None:
    found = read(written(table, delimiter=delimiter, lineterminator=newline), size)
    assert [list(row.fields.values()) for row in found if isinstance(row, Raw) and row.fields] == [
        list(row) for row in table
    ]


def test_its_rows_are_examples_with_the_line_they_begin_on() -> None:
    data = '\ufeffinstruction;input;output\n"Traduza:\n a frase";água;water\nDiga olá;;Olá\n'.encode()
    assert list(rows([data], Data())) == [
        Row(2, messages=(Message("user", "Traduza:\n a frase\n\nágua"), Message("assistant", "water"))),
        Row(4, messages=(Message("user", "Diga olá"), Message("assistant", "Olá"))),
    ]


@pytest.mark.parametrize(
    ("data", "line", "says"),
    [
        (b"prompt,completion\na,b\na,b,c\n", 3, "3 cells, where the header names 2"),
        (b"prompt,completion\na,b\n\n\xffa,b\n", 4, "not UTF-8: byte 0xff at position 1"),
        (b'prompt,completion\na,b\n"a"x,b\n', 3, "no CSV row: ',' expected after '\"'"),
        (b'prompt,completion\na,b\n"a,b\n', 3, "no CSV row: unexpected end of data"),
        (b"text,text\na,b\n", 1, "the header names 'text' more than once"),
        (b"prompt,completion\na,\n", 2, '"completion" is empty'),
        (b"question,answer\na,b\n", 1, "not JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(data: bytes, line: int, says: str) -> None:
    (error, *_) = report(data).errors
    assert error.line == line
    assert says in error.message


def test_a_row_that_the_limit_cuts_off_is_left_out() -> None:
    data = written([(f"question {n}", "an answer") for n in range(100)])
    found = check(io.BytesIO(data), Data(), max_bytes=len(data) - 5)
    assert (found.n_examples, found.errors, found.complete) == (99, [], False)


def test_a_cell_without_end_is_named_and_not_held() -> None:
    data = b'text\n"' + b"line\n" * 3_000_000
    found = report(data)
    assert [str(error) for error in found.errors] == ["line 2: no CSV row: field larger than field limit (10000000)"]


def test_a_line_without_end_is_named_and_not_held() -> None:
    found = report(b"text\nshort\n" + b"x" * 12_000_000 + b"\nshort\n")
    assert [str(error) for error in found.errors] == ["line 3: the row is longer than 10,000,000 bytes"]
