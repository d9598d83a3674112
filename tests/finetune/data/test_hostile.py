"""What files from the world hold: other encodings, other line ends, depths and lengths; read right, or named with their line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.data import reading, unpack
from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer
from finetune.exit_codes import StepError

pytestmark = pytest.mark.unit

Prepare = Callable[..., Path]

TEXTS = {
    "portuguese": "Não há ação sem reação: “coração”, à toa, às 3 h.",
    "decomposed": "Na\u0303o ha\u0301 ac\u0327a\u0303o",
    "emoji": "👩🏽\u200d🚀 🇧🇷 👍🏿 ✔️",
    "chinese": "模型微调：数据。",
    "japanese": "ファインチューニング、がんばれ",
    "arabic": "النموذج \u202b(سريع)\u202c ١٢٣",
    "hebrew": "שלום\u05b0 עולם",
    "thai": "ภาษาไทย ก็ได้",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀",
    "blanks": "\u00a0nbsp\u2003em\u3000wide\u200bzero\tand\r\nlines\n\n",
    "separators": "line\u2028separator\u2029paragraph\u0085next\x1c\x1d\x0b\x0c",
    "private": "\ue0f0\ue0f1\uf8ff",
    "escapes": 'back\\slash "quote" \\u0041 \\n {text} %s {{ jinja }}',
    "noncharacters": "\ufeffinside\uffff\U0010ffff",
}
"""Texts that careless reading, splitting or normalising would change."""

GOOD = b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A%d"}]}'


def chat(answer: str) -> dict[str, Any]:
    """A row with an answer."""
    return {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]}


def lines(*rows: bytes, n: int = 12, end: bytes = b"\n") -> bytes:
    """Good rows with others among them, from line 3 on."""
    good = [GOOD % at for at in range(n)]
    return end.join([*good[:2], *rows, *good[2:], b""])


def answers(out: Path, tokenizer: TextTokenizer) -> list[str]:
    """What the trained tokens say, row by row, without the end of turn."""
    examples = Examples(out / "prepared", "train")
    said = [tokenizer.backend.decode(row.tokens[row.mask].tolist(), skip_special_tokens=False) for row in examples]
    return [text.removesuffix("<|im_end|>") for text in said]


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, unpack.zstd.compress])
def test_text_of_any_script_comes_through_to_the_token(
    prepare_files: Prepare, tokenizer: TextTokenizer, pack: Callable[[bytes], bytes], ascii_only: bool
) -> None:
    rows = b"".join(json.dumps(chat(text), ensure_ascii=ascii_only).encode() + b"\n" for text in TEXTS.values())
    assert answers(prepare_files({"a.jsonl": pack(rows)}), tokenizer) == list(TEXTS.values())


@pytest.mark.parametrize(
    ("form", "times"),
    [
        (lambda text: {"text": text}, 1),
        (lambda text: {"prompt": "p", "completion": text}, 1),
        (lambda text: {"text": text, "source": text}, 2),
        (lambda text: {"instruction": text, "input": text, "output": text}, 3),
        (lambda text: {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}]}, 2),
    ],
)
def test_no_format_changes_a_text(
    prepare_files: Prepare, tokenizer: TextTokenizer, form: Callable[[str], dict[str, Any]], times: int
) -> None:
    rows = b"".join(json.dumps(form(text)).encode() + b"\n" for text in TEXTS.values())
    found = Examples(prepare_files({"a.jsonl": rows}) / "prepared", "train")
    for row, text in zip(found, TEXTS.values(), strict=True):
        assert tokenizer.backend.decode(row.tokens.tolist(), skip_special_tokens=False).count(text) == times


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + lines(),
        lines(end=b"\r\n"),
        b"\n\n  \n" + lines() + b"\n\n",
        lines(b"", b"   ", b"\t"),
        lines().rstrip(b"\n"),
        b" " + lines(),
        b"\xef\xbb\xbf[" + b",\r\n".join(GOOD % at for at in range(12)) + b"]\n",
        gzip.compress(b"\xef\xbb\xbf" + lines(end=b"\r\n")),
    ],
)
def test_marks_line_ends_and_empty_lines_are_no_matter(
    prepare_files: Prepare, tokenizer: TextTokenizer, data: bytes
) -> None:
    assert answers(prepare_files({"a": data}), tokenizer) == [f"A{at}" for at in range(12)]


def nested(depth: int) -> str:
    """Arguments so deep."""
    return '{"a":' * depth + "1" + "}" * depth


def with_call(arguments: str) -> bytes:
    """A row whose assistant calls a tool."""
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    row = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    return json.dumps(row).encode()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}', "not UTF-8: byte 0xe9 at position 47"),
        (b'{"messages": "\xed\xa0\x80"}', "not UTF-8: byte 0xed"),
        (b'{"messages": "\xf8\x88\x80\x80\x80"}', "not UTF-8: byte 0xf8"),
        (GOOD.replace(b"A%d", b"a\x00b"), "not JSON: Invalid control character"),
        (GOOD.replace(b"A%d", b"a\\u0000b"), "holds a NUL character"),
        (GOOD.replace(b"A%d", b"\\ud800"), "half of a surrogate pair"),
        (GOOD.replace(b"A%d", b"\\udc00\\ud800"), "half of a surrogate pair"),
        (b"\x00" * 100, "not JSON"),
        (b"{" * 100_000, "not JSON"),
        (b'{"messages":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "not JSON"),
        (b'{"messages":' + b"[" * 500 + b"]" * 500 + b"}", "messages[0] must be an object, not a list"),
        (with_call(nested(900)), "nested more than 64 levels deep"),
        (with_call(nested(65)), "nested more than 64 levels deep"),
        (with_call(nested(100_000)), '"arguments" is no JSON'),
        (b'{"messages": NaN}', "must be a list of messages, not a number"),
        (b'{"messages": 1e999}', "must be a list of messages, not a number"),
        (b'{"messages": []}{"messages": []}', "not JSON: Extra data"),
        (b'{"messages": [}', "not JSON: Expecting value"),
        (b"null", "a JSON object is expected, not null"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_by_its_line_and_the_rest_is_read(
    prepare_files: Prepare, row: bytes, says: str
) -> None:
    with pytest.raises(StepError) as caught:
        prepare_files({"a.jsonl": lines(row)})
    assert (caught.value.code.name, caught.value.lines) == ("invalid_file_format", [3])
    assert says in caught.value.message


def test_a_line_of_many_megabytes_is_named_and_not_held(
    prepare_files: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ROW_BYTES", 100_000)
    with pytest.raises(StepError, match="line 3: the row is longer than 100,000 bytes"):
        prepare_files({"a.jsonl": lines(GOOD.replace(b"A%d", b"a" * 3_000_000))})


def test_a_long_row_below_the_limit_is_a_row(prepare_files: Prepare, tokenizer: TextTokenizer) -> None:
    long = "palavra " * 20_000
    out = prepare_files(
        {"a.jsonl": lines(json.dumps(chat(long)).encode())}, data={"overlength": "truncate"}, max_length=2000
    )
    kept = answers(out, tokenizer)[2]
    assert long.startswith(kept)
    assert len(kept) > 1500


@pytest.mark.parametrize("cut", [1, 20, 200])
@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (unpack.zstd.compress, "zstd")])
def test_a_packed_file_cut_short_is_refused(
    prepare_files: Prepare, pack: Callable[[bytes], bytes], name: str, cut: int
) -> None:
    with pytest.raises(StepError, match=f"the {name} data ends too early"):
        prepare_files({"a.jsonl": pack(b"".join(GOOD % at + b"\n" for at in range(400)))[:-cut]})
