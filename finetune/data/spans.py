"""Where the answers of a conversation stand in what a chat template makes of it, without knowing the template.

Four ways, each for what the one before cannot find: the generation prompt is how the text begins; it follows the message
before; private-use characters put into contents show where these come out; and a search for where a content begins of which
the template leaves out the beginning. Pure functions; each way renders the conversation again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from finetune.data.row import Message
from finetune.data.template import Template, TemplateError

Span = tuple[int, int]
"""Characters [begin, end) of a text."""

Places = tuple[Literal["outside", "inside", None], Literal["outside", "inside"]]
"""Where the begin and the end of a content are marked: outside or inside of its blanks, the begin perhaps not at all."""
TOGETHER: tuple[Places, ...] = (("outside", "outside"), ("inside", "inside"), (None, "outside"), (None, "inside"))
ALONE: tuple[Places, ...] = (
    ("outside", "outside"), ("inside", "outside"), (None, "outside"),
    ("outside", "inside"), ("inside", "inside"), (None, "inside"),
)  # fmt: skip
"""In what order they are tried."""


def answer_spans(messages: Sequence[Message], template: Template, text: str, special: re.Pattern[str]) -> list[Span]:
    """Where the answers stand in the rendered text, one span an assistant turn, without their end-of-turn token.

    An answer begins where the generation prompt for it ends, if that stands there; else where its content does.

    Args:
        messages: The turns.
        template: That rendered them.
        text: What came out.
        special: Matches any special token.
    Raises:
        TemplateError: An answer cannot be found.
    """
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    begins, ends = _by_marks(messages, template, text, [index for index in turns if not messages[index].tool_calls])
    spans = []
    for index in turns:
        begin, end = begins.get(index), ends.get(index)
        head = _head(messages, index, template, text)
        if head is not None and (end is None or head <= end) and (begin is None or head <= begin):
            begin = head
        if end is None and begin is not None:
            end = _end(messages, index, template, text, begin, special)
        if begin is None and end is not None:
            begin = _where_it_shows(messages, index, template, text, end)
        if begin is None or end is None:
            raise TemplateError("an answer cannot be found in what the model's chat template renders")
        spans.append((begin, end))
    return spans


def unused(text: str) -> tuple[str, str]:
    """Two private-use characters that do not stand in `text`."""
    free = (chr(code) for code in range(0xE0F0, 0xF000) if chr(code) not in text)
    return next(free), next(free)


def rendered(messages: Sequence[Message], template: Template, *, add_generation_prompt: bool = False) -> str | None:
    """What the template makes of a part of a conversation, or a marked one; None where it refuses that: many templates want
    a first turn, or other orders of turns."""
    try:
        return template.render(messages, add_generation_prompt=add_generation_prompt)
    except TemplateError:
        return None


def _head(messages: Sequence[Message], index: int, template: Template, text: str) -> int | None:
    """Where the generation prompt for turn `index` ends."""
    asked = rendered(messages[:index], template, add_generation_prompt=True)
    if asked is None:
        return None
    if text.startswith(asked):
        return len(asked)
    if index == 0 or messages[index - 1].tool_calls:
        return None
    return _after(_marked_end(messages, index - 1, text), index, template, text, add_generation_prompt=True)


def _end(
    messages: Sequence[Message], index: int, template: Template, text: str, begin: int, special: re.Pattern[str]
) -> int | None:
    """Where turn `index` ends, before what closes it."""
    upto: int | None = None
    if (whole := rendered(messages[: index + 1], template)) is not None and text.startswith(whole):
        upto = len(whole)
    elif messages[index].tool_calls:
        upto = _after(_marked_call(messages, index, text), index + 1, template, text, add_generation_prompt=False)
    if upto is None or upto < begin:
        return None
    answer = text[begin:upto].rstrip()
    closing = [match for match in special.finditer(answer) if match.end() == len(answer)]
    return begin + (closing[-1].start() if closing else len(answer))


def _after(
    marked: Sequence[Message], count: int, template: Template, text: str, *, add_generation_prompt: bool
) -> int | None:
    """Where the first `count` turns end in `text`, though what comes before the mark in one of them may be rendered otherwise
    when they stand alone (tools before the last question, thoughts of the last turn only)."""
    mark = unused(text)[0]
    whole, part = (
        rendered(marked, template),
        rendered(marked[:count], template, add_generation_prompt=add_generation_prompt),
    )
    if whole is None or part is None or whole.count(mark) != 1 or part.count(mark) != 1:
        return None
    at, tail = whole.index(mark), part.partition(mark)[2]
    return at + len(tail) if whole.replace(mark, "") == text and text.startswith(tail, at) else None


def _marked_end(messages: Sequence[Message], index: int, text: str) -> list[Message]:
    turn, mark = messages[index], unused(text)[0]
    core = turn.content.rstrip()
    return [*messages[:index], replace(turn, content=core + mark + turn.content[len(core) :]), *messages[index + 1 :]]


def _marked_call(messages: Sequence[Message], index: int, text: str) -> list[Message]:
    turn, mark = messages[index], unused(text)[0]
    *before, last = turn.tool_calls
    function: Mapping[str, Any] = last["function"]
    called = {**last, "function": {**function, "name": function["name"] + mark}}
    return [*messages[:index], replace(turn, tool_calls=(*before, called)), *messages[index + 1 :]]


def _by_marks(
    messages: Sequence[Message], template: Template, text: str, turns: list[int]
) -> tuple[dict[int, int], dict[int, int]]:
    """Begins and ends of the contents of `turns` in `text`, by turn; what cannot be found is left out.

    Templates strip contents or take them apart, so several places for the marks are tried: one is right if the text is
    the same once the marks are gone. What suits one turn may not suit another: then each is looked for alone.
    """
    for places in TOGETHER if len(turns) > 1 else ALONE:
        found = _marked_places(messages, template, text, turns, places)
        if found is None or (len(turns) > 1 and _blurred(messages, text, turns, found, places)):
            continue
        begins, ends = found
        return dict(zip(turns, begins, strict=False)), dict(zip(turns, ends, strict=True))
    begins_alone: dict[int, int] = {}
    ends_alone: dict[int, int] = {}
    for turn in turns if len(turns) > 1 else []:
        begin, end = _by_marks(messages, template, text, [turn])
        begins_alone |= begin
        ends_alone |= end
    return begins_alone, ends_alone


def _marked_places(
    messages: Sequence[Message], template: Template, text: str, turns: list[int], places: Places
) -> tuple[list[int], list[int]] | None:
    """Where marks at the begins and ends of contents come out; no begins if these are not marked. None if it does not work."""
    first, last = unused(text)
    marked = [
        _marked(message, first, last, places) if index in turns else message for index, message in enumerate(messages)
    ]
    found = rendered(marked, template)
    if found is None or found.replace(first, "").replace(last, "") != text:
        return None
    seen = [
        (match.start() - number, match.group()) for number, match in enumerate(re.finditer(f"[{first}{last}]", found))
    ]
    if "".join(mark for _, mark in seen) != ((first if places[0] else "") + last) * len(turns):
        return None
    begins, ends = ([at for at, mark in seen if mark == wanted] for wanted in (first, last))
    letters = [_core(messages[index].content, places[1])[-1:] for index in turns]
    # a template may also have turned contents around
    return (
        (begins, ends) if all(text[:end].endswith(letter) for end, letter in zip(ends, letters, strict=True)) else None
    )


def _marked(message: Message, first: str, last: str, places: Places) -> Message:
    content, (begin, end) = message.content, places
    head = len(content) - len(content.lstrip()) if begin == "inside" else 0
    tail = max(head, len(_core(content, end)))
    return replace(
        message, content=content[:head] + (first if begin else "") + content[head:tail] + last + content[tail:]
    )


def _core(content: str, end: str | None) -> str:
    """The content up to where its end is marked."""
    return content.rstrip() if end == "inside" else content


def _blurred(
    messages: Sequence[Message], text: str, turns: list[int], found: tuple[list[int], list[int]], places: Places
) -> bool:
    """Whether blanks that the marks left outside may stand in the text all the same, of some turn."""
    for number, content in enumerate(messages[index].content for index in turns):
        lead, trail = content[: len(content) - len(content.lstrip())], content[len(content.rstrip()) :]
        if places[0] == "inside" and lead and text[: found[0][number]].endswith(lead):
            return True
        if places[1] == "inside" and trail and text.startswith(trail, found[1][number]):
            return True
    return False


def _where_it_shows(messages: Sequence[Message], index: int, template: Template, text: str, end: int) -> int | None:
    """Where in `text` the content of turn `index` begins, of which the template leaves out the beginning: by halves."""
    turn, mark = messages[index], unused(text)[0]

    def place(at: int) -> int | None:
        split = replace(turn, content=turn.content[:at] + mark + turn.content[at:])
        found = rendered([*messages[:index], split, *messages[index + 1 :]], template)
        if found is None or found.count(mark) != 1 or found.replace(mark, "") != text:
            return None
        return found.index(mark)

    hidden, shown = 0, len(turn.content.rstrip())
    begin = place(shown)
    while begin is not None and hidden < shown:
        middle = (hidden + shown) // 2
        if (found := place(middle)) is None:
            hidden = middle + 1
        else:
            shown, begin = middle, found
    return begin if begin is not None and begin <= end else None
