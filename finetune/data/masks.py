"""Which tokens of an example carry loss: found in the rendered text by characters, then carried over to tokens by offsets.

An answer is trained from where the model would begin to write (the end of the generation prompt) to its end-of-turn
token, that included; headers and the newline after a turn are not. Pure functions; no tokenizer, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from finetune.data.row import Message
from finetune.data.template import Template, TemplateError

Span = tuple[int, int]
"""Characters [begin, end) of a text."""


@dataclass(frozen=True)
class Rendered:
    """An example as one text.

    Attributes:
        text: What is tokenised.
        spans: The characters that carry loss, in order.
        closed: Whether answers end with an end-of-turn token; if not, the tokenizer's eos is put after the last.
    """

    text: str
    spans: tuple[Span, ...]
    closed: bool


def render(
    messages: Sequence[Message],
    template: Template,
    special: re.Pattern[str],
    train_on: Literal["assistant", "all", "last"],
) -> Rendered:
    """Render a conversation once and find what of it is trained.

    Args:
        messages: The turns; the last is an assistant's.
        template: The chat template in force.
        special: Matches any special token of the tokenizer.
        train_on: `assistant`: every answer; `last`: the last one; `all`: everything. Turns with weight 0 never.
    Raises:
        TemplateError: The template refuses the conversation, does not show its tools, or its answers cannot be found in
            what it renders.
    """
    text = template.render(messages)
    must_show_tools(messages, template, text)
    answers = answer_spans(messages, template, text, special)
    ending = turn_ending(text[answers[-1][1] :], special)
    whole = [(begin, _closed(text, end, ending, special)) for begin, end in answers]
    turns = [message for message in messages if message.role == "assistant"]
    if train_on == "all":
        spans = _without(len(text), [span for span, turn in zip(whole, turns, strict=True) if not turn.trained])
    elif train_on == "last":
        spans = [whole[-1]] if turns[-1].trained else []
    else:
        spans = [span for span, turn in zip(whole, turns, strict=True) if turn.trained]
    return Rendered(text, tuple(spans), closed=ending != "")


def turn_ending(tail: str, special: re.Pattern[str]) -> str:
    """What closes an answer: everything up to and with the first special token after the last answer of a conversation.

    Args:
        tail: The rendered text after that answer.
        special: Matches any special token.
    Returns:
        Such as `<|im_end|>`; empty if the template closes turns with no special token.
    """
    match = special.search(tail)
    return tail[: match.end()] if match else ""


def must_show_tools(messages: Sequence[Message], template: Template, text: str) -> None:
    """Refuse a conversation of whose tools the template would leave something out.

    Args:
        messages: The turns.
        template: With the tools bound.
        text: What it rendered.
    Raises:
        TemplateError: A definition, a call, its arguments or a tool's answer does not stand in `text`.
    """
    if not template.tools and not any(message.tool_calls or message.role == "tool" for message in messages):
        return
    silent = "the model's chat template does not render {}; take a base whose template does, or leave out such rows"
    names = [tool["function"]["name"] for tool in template.tools]
    if any(name not in text for name in names):
        raise TemplateError(silent.format("tools"))
    called = [call["function"] for message in messages for call in message.tool_calls]
    bare = [replace(message, tool_calls=tuple(map(_without_arguments, message.tool_calls))) for message in messages]
    if any(function["name"] not in text for function in called) or (
        any(function["arguments"] for function in called) and template.render(bare) == text
    ):
        raise TemplateError(silent.format("calls of tools"))
    mark = _unused(text)[0]
    marked = [
        replace(message, content=message.content + mark) if message.role == "tool" else message for message in messages
    ]
    answers = sum(message.role == "tool" for message in messages)
    if answers and _unescaped(template.render(marked), mark).count(mark) < answers:
        raise TemplateError(silent.format("answers of tools"))


def _without_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": {}}}


def _unescaped(text: str, mark: str) -> str:
    """The text with `mark` put back where a template wrote it as JSON escapes it."""
    return text.replace(f"\\u{ord(mark):04x}", mark)


def _closed(text: str, end: int, ending: str, special: re.Pattern[str]) -> int:
    """Where the answer that ends at `end` is closed: by the usual ending, or another special token right there."""
    if text.startswith(ending, end):
        return end + len(ending)
    other = special.match(text, end)
    return other.end() if other else end


def answer_spans(messages: Sequence[Message], template: Template, text: str, special: re.Pattern[str]) -> list[Span]:
    """Where the answers stand in the rendered text, one span an assistant turn, without their end-of-turn token.

    An answer begins where the generation prompt for it ends, if that is how the text begins; else where its content does.
    Its end is found by rendering again with a private-use character at the ends of the contents.

    Raises:
        TemplateError: An answer cannot be found.
    """
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    spoken = [index for index in turns if not messages[index].tool_calls]
    begins, ends = (dict(zip(spoken, found, strict=False)) for found in _by_marks(messages, template, text, spoken))
    spans = []
    for index in turns:
        begin, end = begins.get(index), ends.get(index)
        head = _prefix_length(messages[:index], template, text, add_generation_prompt=True)
        if head is not None and (end is None or head <= end) and (begin is None or head <= begin):
            begin = head
        if end is None:
            end = _end_by_prefix(messages[: index + 1], template, text, begin, special)
        if begin is None or end is None:
            raise TemplateError("an answer cannot be found in what the model's chat template renders")
        spans.append((begin, end))
    return spans


def token_mask(offsets: Sequence[Span], special: npt.NDArray[np.bool_], spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Which tokens are trained: those that hold a character of a span.

    A special token that begins before a span (a header that swallows the blanks after it) is not, and neither is the first
    token of all: nothing predicts it.

    Args:
        offsets: Characters of each token, shape (n, 2).
        special: Which tokens are special, shape (n,).
        spans: What of the text is trained.
    Returns:
        Booleans, shape (n,).
    """
    mask = np.zeros(len(offsets), dtype=np.bool_)
    if len(offsets) == 0:
        return mask
    begins, ends = np.asarray(offsets, dtype=np.int64).T
    for begin, end in (span for span in spans if span[0] < span[1]):
        mask |= (
            (begins < end) & ((ends > begin) | ((begins == ends) & (begins >= begin))) & ~(special & (begins < begin))
        )
    mask[0] = False
    return mask


def _by_marks(
    messages: Sequence[Message], template: Template, text: str, turns: list[int]
) -> tuple[list[int], list[int]]:
    """Begins and ends of the contents of `turns` in `text`; empty lists for what cannot be found.

    Templates strip contents or take them apart, so several places for the marks are tried: one is right if the text is
    the same once the marks are gone.
    """
    first, last = _unused(text)
    for opened, inside in ((True, False), (True, True), (False, False), (False, True)):
        marked = [
            _marked(message, first if opened else "", last, inside=inside) if index in turns else message
            for index, message in enumerate(messages)
        ]
        try:
            found = template.render(marked)
        except TemplateError:
            continue
        if found.replace(first, "").replace(last, "") != text:
            continue
        places = [
            (match.start() - number, match.group())
            for number, match in enumerate(re.finditer(f"[{first}{last}]", found))
        ]
        order = "".join(mark for _, mark in places)
        ends = [at for at, mark in places if mark == last]
        if order == (first * opened + last) * len(turns) and _fit(ends, marked, turns, text, first + last):
            return [at for at, mark in places if mark == first], ends
    return [], []


def _fit(ends: list[int], marked: Sequence[Message], turns: list[int], text: str, marks: str) -> bool:
    """Whether each content's last character stands before its mark: a template may also have turned contents around."""
    last = [marked[index].content.rpartition(marks[1])[0].rstrip(marks[0])[-1:] for index in turns]
    return all(text[:end].endswith(letter) for end, letter in zip(ends, last, strict=True))


def _marked(message: Message, first: str, last: str, *, inside: bool) -> Message:
    content = message.content
    if not inside:
        return replace(message, content=first + content + last)
    core = content.strip()
    at = content.index(core)
    return replace(message, content=content[:at] + first + core + last + content[at + len(core) :])


def _unused(text: str) -> tuple[str, str]:
    free = (chr(code) for code in range(0xE0F0, 0xF000) if chr(code) not in text)
    return next(free), next(free)


def _prefix_length(
    messages: Sequence[Message], template: Template, text: str, *, add_generation_prompt: bool
) -> int | None:
    try:
        head = template.render(messages, add_generation_prompt=add_generation_prompt)
    except TemplateError:  # many templates want a first turn, or other orders of turns
        return None
    return len(head) if text.startswith(head) else None


def _end_by_prefix(
    messages: Sequence[Message], template: Template, text: str, begin: int | None, special: re.Pattern[str]
) -> int | None:
    upto = _prefix_length(messages, template, text, add_generation_prompt=False)
    if upto is None or begin is None or upto < begin:
        return None
    answer = text[begin:upto].rstrip()
    closing = [match for match in special.finditer(answer) if match.end() == len(answer)]
    return begin + (closing[-1].start() if closing else len(answer))


def _without(length: int, spans: Sequence[Span]) -> list[Span]:
    edges = [0, *(edge for span in spans for edge in span), length]
    return [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if begin < end]
