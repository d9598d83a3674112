"""From rows to token ids and masks: one example at a time is looked at, many are tokenised together.

A row that cannot become an example comes back as a `Refusal` with its line, so that all of them can be named at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from finetune.data.masks import Rendered, render, token_mask
from finetune.data.row import Row
from finetune.data.template import TemplateError
from finetune.data.tokenizer import TextTokenizer

BATCH = 256


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model sees it: `tokens` int32 and `mask` bool (True: carries loss as a target), both of shape (n,)."""

    line: int
    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that cannot become an example, and why. code: `special_tokens_in_text` or `invalid_file_format`."""

    line: int
    code: Literal["special_tokens_in_text", "invalid_file_format"]
    message: str


def encode(
    rows: Iterable[Row], tokenizer: TextTokenizer, train_on: Literal["assistant", "all", "last"]
) -> Iterator[Example | Refusal]:
    """The examples of `rows`, in order.

    Chats are rendered by the template in force; a prompt is followed by its completion and an eos; a text by an eos.

    Args:
        rows: Read one batch at a time.
        tokenizer: The base's.
        train_on: Which tokens carry loss; a plain text is always trained whole.
    """
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH)):
        rendered = [_render(row, tokenizer, train_on) for row in batch]
        encodings = iter(tokenizer.encode([item.text for item in rendered if isinstance(item, Rendered)]))
        for row, item in zip(batch, rendered, strict=True):
            yield item if isinstance(item, Refusal) else _example(row, item, next(encodings), tokenizer)


def _render(row: Row, tokenizer: TextTokenizer, train_on: Literal["assistant", "all", "last"]) -> Rendered | Refusal:
    for text in row.texts():
        if found := tokenizer.special.search(text):
            return Refusal(row.line, "special_tokens_in_text", f"the text contains {found.group()}")
    if not row.messages:
        begin = 0 if train_on == "all" else len(row.prompt)
        text = row.prompt + row.text
        return Rendered(text, ((begin, len(text)),), closed=False)
    try:
        template = tokenizer.template.with_tools(row.tools) if row.tools else tokenizer.template
        return render(row.messages, template, tokenizer.special, train_on)
    except TemplateError as problem:
        return Refusal(row.line, "invalid_file_format", str(problem))


def _example(row: Row, rendered: Rendered, encoding: Encoding, tokenizer: TextTokenizer) -> Example:
    if row.prompt and not row.messages and _straddles(encoding, len(row.prompt)):
        return _in_two(row, rendered, tokenizer)
    tokens = np.array(encoding.ids, dtype=np.int32)
    mask = token_mask(encoding.offsets, tokenizer.is_special(tokens), rendered.spans)
    return _finish(row, tokens, mask, rendered, tokenizer)


def _straddles(encoding: Encoding, boundary: int) -> bool:
    return any(begin < boundary < end for begin, end in encoding.offsets)


def _in_two(row: Row, rendered: Rendered, tokenizer: TextTokenizer) -> Example:
    """A prompt and a completion that would share a token are tokenised apart, as they will be when the model is asked."""
    prompt, completion = tokenizer.ids(row.prompt), _continuation(row.text, tokenizer)
    tokens = np.array([*prompt, *completion], dtype=np.int32)
    whole = rendered.spans[0][0] == 0
    mask = np.array([whole] * len(prompt) + [True] * len(completion), dtype=np.bool_)
    mask[0] = False
    return _finish(row, tokens, mask, rendered, tokenizer)


def _continuation(text: str, tokenizer: TextTokenizer) -> list[int]:
    """Ids of a text that follows another: without the space some tokenizers put at the beginning of all text."""
    newline, ids = tokenizer.ids("\n"), tokenizer.ids("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else tokenizer.ids(text)


def _finish(
    row: Row,
    tokens: npt.NDArray[np.int32],
    mask: npt.NDArray[np.bool_],
    rendered: Rendered,
    tokenizer: TextTokenizer,
) -> Example:
    """Add what the model needs around: a bos before plain texts, an eos after what the template does not close."""
    lead: Sequence[int] = () if row.messages else tokenizer.lead
    if lead and rendered.spans[0][0] == 0 and len(mask):
        mask[0] = True  # the bos predicts it
    ends_trained = bool(rendered.spans) and rendered.spans[-1][1] >= len(rendered.text.rstrip())
    trail = [] if rendered.closed or tokenizer.eos_id is None else [tokenizer.eos_id]
    return Example(
        row.line,
        np.concatenate([np.array(lead, dtype=np.int32), tokens, np.array(trail, dtype=np.int32)]),
        np.concatenate([np.zeros(len(lead), dtype=np.bool_), mask, np.full(len(trail), ends_trained)]),
    )
