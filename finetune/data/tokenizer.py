"""A base's tokenizer and chat template, from its files, without torch: `tokenizer.json` read by the tokenizers library.

What ids text becomes is decided here for training; a test compares with transformers' own reading of the same folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer
from tokenizers.processors import Sequence as Processors

from finetune.data.masks import turn_ending
from finetune.data.row import Message
from finetune.data.template import Template, TemplateError, default_template
from finetune.exit_codes import StepError
from finetune.model.cache import chat_template

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PADS = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|PAD_TOKEN|>")


@dataclass(frozen=True)
class TextTokenizer:
    """Text to ids and back, for one base.

    Attributes:
        backend: The tokenizer, adding nothing by itself.
        template: The chat template in force.
        special: Matches any special token in a text.
        special_ids: Ids of the special tokens.
        lead: Ids the tokenizer puts before a text of its own accord (a bos), outside chats.
        eos_id: Put after plain texts; None if the tokenizer has none.
        eos_ids: Ids at which generation ends, the template's end-of-turn token among them.
        pad_id: Never one of `eos_ids`: masking by it would mask the end of a turn.
        sha256: Of everything here that decides what ids a text becomes.
    """

    backend: Tokenizer = field(repr=False)
    template: Template
    special: re.Pattern[str]
    special_ids: frozenset[int]
    lead: tuple[int, ...]
    eos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    sha256: str

    @property
    def vocab_size(self) -> int:
        """Ids it can give, added tokens among them."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Ids and character offsets of texts, nothing added; in parallel."""
        return list(self.backend.encode_batch(list(texts), add_special_tokens=False))

    def ids(self, text: str) -> list[int]:
        """Ids of one text, nothing added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation that ends with the header of an answer: what the model goes on from.

        Raises:
            TemplateError: The template refuses the conversation.
        """
        return self.ids(self.template.render(messages, add_generation_prompt=True))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def is_special(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Which of `ids` are special tokens; same shape."""
        return np.isin(ids, list(self.special_ids))


def load(folder: Path, template: str | None = None) -> TextTokenizer:
    """Read a base's tokenizer.

    Args:
        folder: The base: tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json, generation_config.json.
        template: A chat template that replaces the base's own.
    Raises:
        StepError: `unsupported_model`: no tokenizer.json, or one that cannot be used.
    """
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as problem:  # noqa: BLE001  the library raises nothing narrower
        raise StepError(
            "unsupported_model", f"The model's tokenizer.json cannot be read: {problem}.", param="model"
        ) from None
    backend.no_padding()
    backend.no_truncation()
    lead = _lead(backend)
    backend.post_processor = Processors([])  # it adds nothing where nothing is asked for, but trims offsets
    named = _named(folder)
    tokens = {token.content: id_ for id_, token in backend.get_added_tokens_decoder().items() if token.special}
    tokens |= {
        named[name]: id_
        for name in ("bos_token", "eos_token")
        if name in named and (id_ := backend.token_to_id(named[name])) is not None
    }
    special = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")
    source = template if template is not None else chat_template(folder) or default_template(tokens)
    try:
        compiled = Template(source, named)
    except TemplateError as problem:
        raise StepError("unsupported_model", f"The model cannot be used: {problem}.", param="model") from None
    eos = backend.token_to_id(named["eos_token"]) if "eos_token" in named else None
    eos_ids = _eos_ids(folder, eos, _end_of_turn(compiled, special, tokens))
    return TextTokenizer(
        backend=backend,
        template=compiled,
        special=special,
        special_ids=frozenset(tokens.values()),
        lead=lead,
        eos_id=eos if eos is not None else next(iter(eos_ids), None),
        eos_ids=eos_ids,
        pad_id=_pad_id(backend, named, tokens, eos_ids),
        sha256=_digest(backend, source, named, lead, eos_ids),
    )


def _lead(backend: Tokenizer) -> tuple[int, ...]:
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    return next((tuple(full[:at]) for at in range(len(full)) if full[at : at + len(bare)] == bare), ())


def _named(folder: Path) -> dict[str, str]:
    """`bos_token`, `eos_token`, … as the tokenizer's files name them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = _json(folder / name)
        for key in NAMES:
            value = values.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and value:
                found[key] = value
    return found


def _eos_ids(folder: Path, eos: int | None, end_of_turn: int | None) -> tuple[int, ...]:
    ids: list[int] = [id_ for id_ in (end_of_turn, eos) if id_ is not None]
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        ids += [id_ for id_ in (value if isinstance(value, list) else [value]) if isinstance(id_, int)]
    return tuple(dict.fromkeys(ids))


def _end_of_turn(template: Template, special: re.Pattern[str], tokens: dict[str, int]) -> int | None:
    """The id of the token that closes an answer in this template, found by rendering one."""
    answer = "\ue0f0"
    try:
        text = template.render([Message("user", "a"), Message("assistant", answer)])
    except TemplateError:
        return None
    match = special.search(turn_ending(text.partition(answer)[2], special))
    return tokens[match.group()] if match else None


def _pad_id(backend: Tokenizer, named: dict[str, str], tokens: dict[str, int], eos_ids: Sequence[int]) -> int:
    wished = [
        named.get("pad_token"),
        *PADS,
        *(token for token in tokens if "pad" in token.lower()),
        named.get("unk_token"),
        *tokens,
    ]
    ids = (backend.token_to_id(token) for token in wished if token)
    return next(
        (int(id_) for id_ in ids if id_ is not None and id_ not in eos_ids),
        next(id_ for id_ in range(len(eos_ids) + 1) if id_ not in eos_ids),
    )


def _digest(backend: Tokenizer, *facts: Any) -> str:
    return hashlib.sha256((backend.to_str() + json.dumps(facts, sort_keys=True)).encode()).hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
