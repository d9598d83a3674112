"""What is wrong with a row of a dataset, in a user's words."""

from __future__ import annotations

import json
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


class Refused(Exception):
    """What is wrong with a row. kind: a word of ours that groups equal mistakes; message: what a user reads."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind, self.message = kind, message
        super().__init__(message)


def clean(text: str, where: str) -> str:
    """The text, if it is one.

    Raises:
        Refused: It holds NUL or half a surrogate pair.
    """
    if "\x00" in text:
        raise Refused("nul", f"{where} holds a NUL character")
    if _SURROGATE.search(text):
        raise Refused("surrogate", f"{where} holds half of a surrogate pair, which is no text")
    return text


def kind_of(value: Any) -> str:
    """What a JSON value is, in a user's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
    return "an empty list" if value == [] else names[type(value)]


def shown(value: Any) -> str:
    """A JSON value, shortened, as a sentence may quote it."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else text[:60] + "…"
