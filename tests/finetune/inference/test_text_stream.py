"""Text while its tokens come: for any text, any stop strings, the pieces are the text up to the first stop."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.inference.text import TextStream

pytestmark = pytest.mark.unit


def decode(ids: Sequence[int]) -> str:
    """Every id is a byte of UTF-8."""
    return bytes(ids).decode(errors="replace")


def stream(text: str, stops: list[str]) -> tuple[list[str], bool]:
    """The pieces of a text whose tokens are its bytes, and whether a stop string ended it."""
    answer, shown = TextStream(decode, stops), []
    for token in text.encode():
        shown.append(answer.push(token))
        if answer.stopped:
            return shown, True
    return [*shown, answer.finish()], answer.stopped


def until(text: str, stops: list[str]) -> str:
    """`text` before the stop string that is complete first; of those complete at once, the longest."""
    for end in range(len(text) + 1):
        if found := [text[:end].find(stop) for stop in stops if stop in text[:end]]:
            return text[: min(found)]
    return text


@given(st.text("ab é日😀", max_size=20), st.lists(st.text("ab é日😀", min_size=1, max_size=4), max_size=4))
def test_the_pieces_are_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    shown, stopped = stream(text, stops)
    assert "".join(shown) == until(text, stops)
    assert stopped == any(stop in text for stop in stops)


@given(st.text(max_size=20).filter(lambda text: "\ufffd" not in text))
def test_no_piece_has_half_a_character(text: str) -> None:
    assert not [piece for piece in stream(text, [])[0] if "\ufffd" in piece]


def test_a_character_that_never_becomes_whole_is_shown_at_the_end() -> None:
    answer = TextStream(decode)
    assert [answer.push(token) for token in b"a\xf0\x9f"] == ["a", "", ""]
    assert answer.finish() == "\ufffd"
