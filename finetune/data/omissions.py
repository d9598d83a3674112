"""What a chat template would leave out of a conversation: such rows are refused, or they would train something else in silence.

Pure functions that render the conversation again, with a character at the ends of contents that must come out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.data.row import Message
from finetune.data.spans import rendered, unused
from finetune.data.template import Template, TemplateError

SILENT = "the model's chat template does not render {}; take a base whose template does, or leave out such rows"


def must_show(messages: Sequence[Message], template: Template, text: str) -> None:
    """Refuse a conversation of which the template would leave something out.

    Args:
        messages: The turns.
        template: With the tools bound.
        text: What it rendered.
    Raises:
        TemplateError: A message, a tool's definition, a call, its arguments or a tool's answer does not stand in `text`.
    """
    if template.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        _must_show_tools(messages, template, text)
    spoken = [index for index, message in enumerate(messages) if message.content.strip()]
    if _shows(messages, spoken, template, text):
        return
    for index in spoken:
        if not _shows(messages, [index], template, text):
            turn = messages[index]
            what = "the words beside calls of tools" if turn.tool_calls else f"messages of role {turn.role}"
            raise TemplateError(SILENT.format(what))


def must_show_the_end(messages: Sequence[Message], shown: str) -> None:
    """Refuse a conversation whose last answer loses its beginning: the thoughts a model is to learn from it.

    Of earlier answers templates leave out the thoughts rightly: the model will not see them either.

    Args:
        messages: The turns; the last is an assistant's.
        shown: What the template made of it.
    Raises:
        TemplateError: It does.
    """
    last = messages[-1]
    said, left = "".join(last.content.split()), "".join(shown.split())
    if last.trained and not last.tool_calls and len(left) < len(said) and said.endswith(left):
        told = "leaves out the beginning of the last answer, such as its thoughts; take these out of the rows"
        raise TemplateError(f"the model's chat template {told}, or give the base a template that keeps them")


def prompt_surplus(template: Template) -> str:
    """What the template asks a model with that it puts before no answer: the model learns to answer without, and is asked with.

    Args:
        template: Such as those of reasoning models, that begin the model's thoughts for it and leave them out of answers.
    Returns:
        Such as `<think>` and a newline; empty if all is well, or answers may bring it along.
    """
    asked, mark = Message("user", "a"), unused("")[0]
    prompt = rendered([asked], template, add_generation_prompt=True)
    whole = rendered([asked, Message("assistant", mark)], template)
    if prompt is None or whole is None or whole.startswith(prompt):
        return ""
    head = whole.partition(mark)[0]
    surplus = prompt.removeprefix(head)
    thought = surplus + "b" + re.sub(r"\s*<(\w+)>\s*", r"</\1>", surplus) + mark
    with_it = rendered([asked, Message("assistant", thought)], template)
    return surplus if surplus != prompt and with_it is not None and not with_it.startswith(prompt) else ""


def _shows(messages: Sequence[Message], chosen: Sequence[int], template: Template, text: str) -> bool:
    """Whether the ends of the chosen contents come out; also if the template takes offence at being asked."""
    mark = unused(text)[0]
    marked = [
        replace(message, content=message.content.rstrip() + mark) if index in chosen else message
        for index, message in enumerate(messages)
    ]
    found = rendered(marked, template)
    return found is None or _unescaped(found, mark).count(mark) >= len(chosen)


def _must_show_tools(messages: Sequence[Message], template: Template, text: str) -> None:
    names = [tool["function"]["name"] for tool in template.tools]
    if any(name not in text for name in names):
        raise TemplateError(SILENT.format("tools"))
    called = [call["function"] for message in messages for call in message.tool_calls]
    bare = [replace(message, tool_calls=tuple(map(_without_arguments, message.tool_calls))) for message in messages]
    if any(function["name"] not in text for function in called) or (
        any(function["arguments"] for function in called) and template.render(bare) == text
    ):
        raise TemplateError(SILENT.format("calls of tools"))
    mark = unused(text)[0]
    marked = [
        replace(message, content=message.content + mark) if message.role == "tool" else message for message in messages
    ]
    answers = sum(message.role == "tool" for message in messages)
    if answers and _unescaped(template.render(marked), mark).count(mark) < answers:
        raise TemplateError(SILENT.format("answers of tools"))


def _without_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": {}}}


def _unescaped(text: str, mark: str) -> str:
    """The text with `mark` put back where a template wrote it as JSON escapes it."""
    return text.replace(f"\\u{ord(mark):04x}", mark)
