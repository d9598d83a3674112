"""From a request to what the model goes on from: template in force, ids, room for the answer.

The same tokenizer and template as in training (finetune.data). A special token written out in a message stays text: it
cannot end a turn or open another. No torch.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from finetune.data.row import Message
from finetune.data.template import TemplateError
from finetune.data.tokenizer import TextTokenizer, load
from finetune.inference.errors import bad
from finetune.inference.request import ChatRequest

CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
DEFAULT_CONTEXT = 2048

tokenizer_of = lru_cache(maxsize=16)(load)
"""The tokenizer of a base's folder with a template; the folder's content never changes."""


@dataclass(frozen=True)
class Prompt:
    """What the model goes on from.

    Attributes:
        ids: Of the conversation, ending with the header of an answer.
        limit: Tokens an answer may have.
        tokenizer: Of the base, with the template in force.
    """

    ids: tuple[int, ...]
    limit: int
    tokenizer: TextTokenizer


def build(request: ChatRequest, folder: Path, template: str | None, *, most: int) -> Prompt:
    """Render and tokenise a conversation.

    Args:
        request: The messages, and how many tokens are wanted.
        folder: The base's.
        template: A chat template that replaces the base's own.
        most: Tokens an answer gets where the request does not say.
    Raises:
        EngineError: 400: the template refuses the conversation, or it is too long (`context_length_exceeded`).
        StepError: `unsupported_model`: no usable tokenizer.
    """
    tokenizer = tokenizer_of(folder, template)
    try:
        ids = raw_ids(tokenizer, request) if request.llamaflow.raw else prompt_ids(tokenizer, request.turns())
    except TemplateError as problem:
        raise bad(f"The messages cannot be used: {problem}.", "messages") from None
    window = context(folder)
    if not ids or len(ids) >= window:
        message = f"The messages are {len(ids):,} tokens long; the model reads at most {window:,}, answer included."
        raise bad(message, "messages", "context_length_exceeded")
    wanted = request.limit if request.limit is not None else most
    return Prompt(tuple(ids), min(wanted, window - len(ids)), tokenizer)


def prompt_ids(tokenizer: TextTokenizer, turns: Sequence[Message]) -> list[int]:
    """Ids of a conversation; special tokens inside messages come out as ordinary text.

    A seam is put into each such token before rendering, and the text is cut there before it is tokenised.
    """
    if not any(tokenizer.special.search(turn.content) for turn in turns):
        return tokenizer.prompt(turns)
    seam = next(mark for mark in _marks() if not any(mark in turn.content for turn in turns))
    broken = [Message(turn.role, _break(tokenizer, turn.content, seam)) for turn in turns]
    text = tokenizer.template.render(broken, add_generation_prompt=True)
    return [id_ for part in text.split(seam) for id_ in tokenizer.ids(part)]


def raw_ids(tokenizer: TextTokenizer, request: ChatRequest) -> list[int]:
    """Ids of a text that the model goes on from as it stands, led in as plain texts are in training.

    Whoever writes the whole prompt writes its special tokens too: here they count as such.
    """
    return [*tokenizer.lead, *tokenizer.ids("".join(turn.content for turn in request.turns()))]


def context(folder: Path) -> int:
    """Tokens a base can read, by its config.json."""
    config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inner = config.get("text_config")
    for values in (config, inner if isinstance(inner, dict) else {}):
        for name in CONTEXT_NAMES:
            if isinstance(values.get(name), int) and values[name] > 0:
                return int(values[name])
    return DEFAULT_CONTEXT


def _break(tokenizer: TextTokenizer, content: str, seam: str) -> str:
    while match := tokenizer.special.search(content):
        middle = match.start() + max(1, (match.end() - match.start()) // 2)
        content = content[:middle] + seam + content[middle:]
    return content


def _marks() -> Any:
    while True:
        yield f"\ue0f1{secrets.token_hex(8)}\ue0f1"
