"""Writes the golden files: `python -m tests.finetune.golden.write`. The tests compare with what is written here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from finetune.data.encode import Example, encode
from finetune.data.masks import render
from finetune.data.row import Row
from finetune.data.template import TemplateError
from finetune.data.tokenizer import TextTokenizer, load
from tests.finetune.golden.conversations import CONVERSATIONS
from tests.finetune.golden.families import FAMILIES, Family, build

MASKS = Path(__file__).parent / "masks"
WIDTH = 12
"""Tokens a line has at most."""


def page(family: Family, tokenizer: TextTokenizer) -> str:
    """The golden file of a family."""
    ends = " ".join(f"{shown(tokenizer.backend.id_to_token(id_))}{id_}" for id_ in tokenizer.eos_ids)
    lines = [f"{family.name}: {family.kind} tokenizer; generation ends at {ends}; padding is {tokenizer.pad_id}"]
    for name, row in CONVERSATIONS.items():
        lines += ["", f"== {name}", *conversation(row, tokenizer)]
    lines += ["", "== one question, train_on all", *conversation(CONVERSATIONS["one question"], tokenizer, "all")]
    last = CONVERSATIONS["a system turn, and an answer of weight 0"]
    lines += ["", "== a system turn, train_on last", *conversation(last, tokenizer, "last")]
    return "\n".join(lines) + "\n"


def conversation(row: Row, tokenizer: TextTokenizer, train_on: str = "assistant") -> Iterator[str]:
    """What is said of one conversation: its tokens, or why it is refused."""
    (found,) = encode([row], tokenizer, train_on)  # type: ignore[arg-type]
    if not isinstance(found, Example):
        yield f"refused: {found.message}"
        return
    text = render(row.messages, tokenizer.template.with_tools(row.tools), tokenizer.special, "assistant").text
    offsets = [*tokenizer.encode([text])[0].offsets, (len(text), len(text))]
    pieces = [text[begin:end] for begin, end in offsets]
    pieces = [
        tokenizer.backend.id_to_token(int(id_)) if tokenizer.is_special(id_) else piece
        for id_, piece in zip(found.tokens, pieces, strict=False)
    ]
    yield from told(pieces, found.tokens.tolist(), found.mask.tolist())
    try:
        asked = tokenizer.template.with_tools(row.tools).render(row.messages[:-1], add_generation_prompt=True)
        yield f"prompt {shown(asked)}"
    except TemplateError as problem:
        yield f"prompt refused: {problem}"


def told(pieces: Sequence[str], ids: Sequence[int], mask: Sequence[bool]) -> Iterator[str]:
    """Lines of tokens; a new one wherever the mask changes."""
    for trained, group in groupby(zip(pieces, ids, mask, strict=True), key=lambda token: token[2]):
        tokens = [f"{shown(piece)}{id_}" for piece, id_, _ in group]
        for begin in range(0, len(tokens), WIDTH):
            yield ("T  " if trained else ".  ") + " ".join(tokens[begin : begin + WIDTH])


def shown(text: str) -> str:
    """A text in quotes, blanks and newlines to be seen."""
    return '"' + text.replace(" ", "␣").replace("\n", "⏎") + '"'


def main() -> None:
    """Write all of them."""
    MASKS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for family in FAMILIES.values():
            tokenizer = load(build(family, Path(scratch) / family.name))
            (MASKS / f"{family.name}.txt").write_text(page(family, tokenizer), encoding="utf-8")


if __name__ == "__main__":
    main()
