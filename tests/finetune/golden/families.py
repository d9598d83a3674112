"""The families whose masks are looked at: their special tokens, the kind of their tokenizer, and a base's folder of each."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from finetune.data.template import CHATML, PLAIN

TEMPLATES = Path(__file__).parent / "templates"

SPOKEN = """
system user assistant model You are a helpful The key of the order What is Yes No Be brief Hello tool call name weather
arguments parameters city think json content function User Assistant INST Is it warm And type Cutting Knowledge Date
December Today Jul 2023 2024 26 Environment ipython Given these functions answer with JSON that fits best may described
inside tools Tools Call one object response by Alibaba Cloud created AI named trained Hugging Face Qwen Smol
"""
WORDS = SPOKEN.split()
"""Tokens of their own, also with a blank before them; everything else falls apart into letters."""
RUNS = ("\n\n", "\n\n\n", "  ", ".\n", ">\n", ">\n\n", "\n\n\n\n")
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3, Qwen and Phi-4 cut text into words: newlines stay with the punctuation before them."""


@dataclass(frozen=True)
class Family:
    """A chat template and the tokenizer it is written for.

    Attributes:
        name: Of its template and its golden file.
        kind: `bytes`: byte-level BPE, words cut as GPT-4 does; `legacy`: SentencePiece, a blank put before every stretch
            of text; `first`: SentencePiece, a blank put before the whole text only; `gemma`: SentencePiece without that.
        special: Its special tokens; the first is bos, the last eos.
        swallowing: Those of them that swallow blanks after them.
        source: Its template, where it is one of ours.
    """

    name: str
    kind: str
    special: tuple[str, ...]
    swallowing: tuple[str, ...] = ()
    source: str | None = None

    @property
    def template(self) -> str:
        """Jinja; its file ends with a newline that is not part of it."""
        return self.source or (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


LLAMA_3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>")
MISTRAL_3 = ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
DEEPSEEK_TOOLS = tuple(
    f"<｜tool▁{name}｜>"
    for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "outputs▁begin", "outputs▁end", "output▁begin",
                 "output▁end", "sep")
)  # fmt: skip
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PHI_3 = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("llama2", "legacy", ("<s>", "</s>")),
        Family("llama3", "bytes", LLAMA_3),
        Family("llama31", "bytes", LLAMA_3),
        Family("mistral_v1", "legacy", ("<s>", "</s>")),
        Family("mistral_v3", "first", ("<s>", *MISTRAL_3, "</s>")),
        Family("deepseek_v2", "bytes", (DEEPSEEK[0], DEEPSEEK[-1])),
        Family("deepseek_v3", "bytes", (*DEEPSEEK[:3], *DEEPSEEK_TOOLS, DEEPSEEK[3])),
        Family("deepseek_r1", "bytes", DEEPSEEK),
        Family("qwen25", "bytes", IM),
        Family("qwen3", "bytes", IM),
        Family("gemma2", "gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>")),
        Family("gemma3", "gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>")),
        Family("phi3", "legacy", ("<s>", *PHI_3[1:], PHI_3[0]), swallowing=PHI_3[1:]),
        Family("phi4", "bytes", ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>")),
        Family("smollm2", "bytes", IM),
        Family("chatml", "bytes", IM, source=CHATML),
        Family("plain", "bytes", ("<|endoftext|>",), source=PLAIN),
    )
}


def build(family: Family, folder: Path) -> Path:
    """A base's folder without weights: tokenizer.json, tokenizer_config.json, config.json, chat_template.jinja."""
    backend = _byte_level() if family.kind == "bytes" else _sentence_piece(family.kind)
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, rstrip=token in family.swallowing)
            for token in family.special
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": family.special[0], "eos_token": family.special[-1]}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | kind))
    (folder / "config.json").write_text(json.dumps({"vocab_size": backend.get_vocab_size()}))
    (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    return folder


def _byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*WORDS, *(f" {word}" for word in WORDS), *RUNS]
    spelled = [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)[0][0] for word in words
    ]
    backend = Tokenizer(_bpe(alphabet, spelled))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(kind: str) -> Tokenizer:
    letters = [chr(code) for code in range(33, 127)] + list("▁\nãçéíº")
    words = [
        *(f"▁{word}" for word in WORDS),
        *WORDS,
        *(run.replace(" ", "▁") for run in RUNS if "\n" not in run.strip("\n")),
    ]
    backend = Tokenizer(
        _bpe(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters], words, byte_fallback=True)
    )
    blanks = normalizers.Replace(" ", "▁")
    if kind == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    elif kind == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = blanks
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*back, *([] if kind == "gemma" else [decoders.Strip(" ", 1, 0)])])
    return backend


def _bpe(alphabet: list[str], words: list[str], *, byte_fallback: bool = False) -> models.BPE:
    """A vocabulary of letters and words; each word is put together from its left."""
    vocabulary = {letter: id_ for id_, letter in enumerate(alphabet)}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(2, len(word) + 1):
            merges.setdefault((word[: end - 1], word[end - 1]))
            vocabulary.setdefault(word[:end], len(vocabulary))
    extra = {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True} if byte_fallback else {}
    return models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=not byte_fallback, **extra)


def special_pattern(family: Family) -> re.Pattern[str]:
    """Matches any special token of a family."""
    return re.compile("|".join(map(re.escape, family.special)))
