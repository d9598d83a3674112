"""The recipe for {text, source} rows: its values, its labels, its padding, and that a script without them cannot train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.config import JobSpec
from finetune.data.arrays import Examples
from finetune.data.tokenizer import TextTokenizer, load
from finetune.steps import Resolved

Prepare = Callable[..., Path]

ROWS = [{"text": f"A carga {n} chegou ao porto.", "source": "diário"} for n in range(20)]


def as_lines(rows: list[dict[str, str]]) -> bytes:
    """JSON Lines."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


@pytest.fixture
def out(prepare_files: Prepare) -> Path:
    """Rows prepared by the preset, one of them longer than its limit."""
    spec = JobSpec(model="m", training_file="s3://bucket/key", preset="text_source")
    rows = [*ROWS, {"text": "palavra " * 200, "source": "x"}]
    return prepare_files({"a.jsonl": as_lines(rows)}, data=spec.data.model_dump(), **spec.hyperparameters.model_dump())


@pytest.fixture
def without_pad(base: Path, tmp_path: Path) -> Path:
    """A base whose tokenizer names no padding token, as Llama's."""
    folder = tmp_path / "llama"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    named = json.loads((folder / "tokenizer_config.json").read_text())
    del named["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


@pytest.mark.unit
def test_the_preset_is_one_epoch_of_eights_at_two_hundred_thousandths_within_128_tokens(out: Path) -> None:
    found = Resolved.model_validate_json((out / "prepared" / "resolved.json").read_bytes())
    assert (found.n_epochs, found.batch_size, found.gradient_accumulation_steps, found.learning_rate) == (1, 8, 1, 2e-5)
    assert (found.lr_scheduler, found.warmup_ratio, found.weight_decay) == ("linear", 0.0, 0.0)
    assert (found.save_steps, found.save_total_limit) == (100, 2)
    assert (found.max_length, found.longest, found.truncated, found.n_examples) == (128, 128, 1, 21)
    assert found.total_steps == 3


@pytest.mark.unit
def test_a_row_reads_as_text_and_source(out: Path, tokenizer: TextTokenizer) -> None:
    first = Examples(out / "prepared", "train")[0]
    assert tokenizer.decode(first.tokens) == "Texto: A carga 0 chegou ao porto.\nFonte: diário"
    assert first.tokens[-1] == tokenizer.eos_id


@pytest.mark.unit
def test_every_token_that_something_predicts_is_a_label(out: Path) -> None:
    examples = Examples(out / "prepared", "train")
    assert all(row.mask[1:].all() for row in examples)
    assert int(examples.trained.sum()) == len(examples.tokens) - len(examples)


@pytest.mark.unit
def test_a_tokenizer_that_names_no_padding_gets_one_that_ends_nothing(without_pad: Path) -> None:
    found = load(without_pad)
    assert found.pad_id not in found.eos_ids
    assert found.backend.id_to_token(found.pad_id) == "<|endoftext|>"


@pytest.mark.train
def test_padding_as_a_common_script_does_is_refused_by_such_a_tokenizer(without_pad: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(without_pad)
    with pytest.raises(ValueError, match="does not have a padding token"):
        theirs("Texto: a\nFonte: b", truncation=True, padding="max_length", max_length=128)


@pytest.mark.train
def test_rows_without_labels_have_no_loss(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=32))
    rows: Any = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}] * 8
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[], save_strategy="no")
    with pytest.raises(ValueError, match="did not return a loss"):
        Trainer(model=model, args=arguments, train_dataset=rows).train()
