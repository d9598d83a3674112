"""Which tokens of an example carry loss: found in the rendered text by characters, then carried over to tokens by offsets.

An answer is trained from where the model would begin to write (the end of the generation prompt) to its end-of-turn
token, that included; headers and the newline after a turn are not. `spans` finds the answers, `omissions` refuses what a
template would leave out. Pure functions; no tokenizer, no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from finetune.data.omissions import must_show, must_show_the_end
from finetune.data.row import Message
from finetune.data.spans import Span, answer_spans
from finetune.data.template import Template


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
        TemplateError: The template refuses the conversation, leaves something of it out, or its answers cannot be found
            in what it renders.
    """
    text = template.render(messages)
    must_show(messages, template, text)
    answers = answer_spans(messages, template, text, special)
    must_show_the_end(messages, text[slice(*answers[-1])])
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


def _closed(text: str, end: int, ending: str, special: re.Pattern[str]) -> int:
    """Where the answer that ends at `end` is closed: by the usual ending, or another special token right there."""
    if text.startswith(ending, end):
        return end + len(ending)
    other = special.match(text, end)
    return other.end() if other else end


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


def _without(length: int, spans: Sequence[Span]) -> list[Span]:
    edges = [0, *(edge for span in spans for edge in span), length]
    return [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if begin < end]
