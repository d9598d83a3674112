"""Preference rows: one question, a better answer and a worse one, in OpenAI's spelling and in TRL's.

Pure functions of a row's fields. What stands before the answers is never trained; of the answers, what rows of messages
would train.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune.config import Data
from finetune.data import tools
from finetune.data.refusal import Refused, kind_of
from finetune.data.row import Message, Pair, Row, conversation, text_field

EXPECTED = (
    'a preference pair is expected: "prompt", "chosen" and "rejected", or "input", "preferred_output" and '
    '"non_preferred_output"'
)


def read(line: int, fields: dict[str, Any], _data: Data) -> Pair:
    """The pair of a row.

    `{"input": {"messages", "tools"}, "preferred_output", "non_preferred_output"}` as OpenAI's files have it, or
    `{"prompt", "chosen", "rejected"}` as TRL's: three texts or three lists of messages; of lists `prompt` may be left out
    where both answers repeat it.

    Raises:
        Refused: It is no pair.
    """
    if "preferred_output" in fields or "non_preferred_output" in fields:
        return _openai(line, fields)
    for name in ("chosen", "rejected"):
        if name not in fields:
            raise Refused(
                "pair", f'"{name}" is missing; {EXPECTED}' if fields.keys() & {"chosen", "rejected"} else EXPECTED
            )
    if isinstance(fields["chosen"], list) and isinstance(fields["rejected"], list):
        return _lists(line, fields)
    if isinstance(fields.get("prompt"), list):
        raise Refused("pair", '"prompt" is a list of messages; "chosen" and "rejected" must be such lists too')
    prompt, chosen, rejected = (text_field(fields, name) for name in ("prompt", "chosen", "rejected"))
    return Pair(line, Row(line, prompt=prompt, text=chosen), Row(line, prompt=prompt, text=rejected))


def _openai(line: int, fields: dict[str, Any]) -> Pair:
    given = fields.get("input")
    if not isinstance(given, dict):
        raise Refused("pair", f'"input" must be an object with "messages", not {kind_of(given)}')
    asked = _question(given.get("messages"), "input.messages")
    answers = [_answer(fields.get(name), name) for name in ("preferred_output", "non_preferred_output")]
    return _pair(line, asked, answers, tools.definitions(given.get("tools")))


def _lists(line: int, fields: dict[str, Any]) -> Pair:
    known = tools.definitions(fields.get("tools"))
    given = fields.get("prompt")
    if given is not None and not isinstance(given, list):
        message = '"prompt" must be a list of messages where "chosen" and "rejected" are, not '
        raise Refused("pair", f"{message}{kind_of(given)}; leave it out if they repeat it")
    if given is not None:
        asked = _question(given, "prompt")
        return _pair(line, asked, [_answer(fields[name], name) for name in ("chosen", "rejected")], known)
    whole = [conversation(fields[name], name, ends_with_answer=True) for name in ("chosen", "rejected")]
    asked = _common(*whole)
    if not asked or any(len(turns) == len(asked) or turns[len(asked)].role != "assistant" for turns in whole):
        raise Refused("pair", '"chosen" and "rejected" must begin with the same messages, up to an answer of each')
    return _pair(line, asked, [turns[len(asked) :] for turns in whole], known)


def _common(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns both begin with; of two equal conversations all but the last answer."""
    length = next(
        (at for at, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other),
        min(len(chosen), len(rejected)),
    )
    return chosen[: length - 1] if chosen == rejected else chosen[:length]


def _question(value: Any, name: str) -> tuple[Message, ...]:
    turns = conversation(value, name, ends_with_answer=False)
    if turns[-1].role == "assistant":
        raise Refused("pair", f'"{name}" must not end with an assistant message: the answers go on from there')
    return turns


def _answer(value: Any, name: str) -> tuple[Message, ...]:
    turns = conversation(value, name, ends_with_answer=True)
    if turns[0].role != "assistant":
        message = f'"{name}" must begin with an assistant message, not {turns[0].role}'
        raise Refused("pair", f"{message}; it holds the answer only, where the question stands apart")
    return turns


def _pair(
    line: int,
    asked: tuple[Message, ...],
    answers: list[tuple[Message, ...]],
    known: tuple[dict[str, Any], ...],
) -> Pair:
    context = tuple(replace(turn, trained=False) for turn in asked)
    chosen, rejected = (Row(line, messages=(*context, *answer), tools=known) for answer in answers)
    return Pair(line, chosen, rejected)
