"""One command trains a whole job from local files: no service, no Nextflow, no S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from finetune.__main__ import main
from finetune.progress import read_lines
from finetune.steps import EvaluationResult, ExportResult, Resolved, Result

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny random Llama with a byte-level tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=259, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["abc"], trainer)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        vocab_size=259, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    backend.save(str(tmp_path / "model" / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(named))
    return tmp_path / "model"


def test_a_job_with_local_files_becomes_an_adapter(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAFLOW_CACHE_DIR", str(tmp_path / "cache"))
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n % 3)}]}
        for n in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, object] = {
        "hyperparameters": {"n_epochs": 2, "batch_size": 4},
        "data": {"validation_split": 0.25},
    }
    options["output"] = {"merge": True, "gguf": True}
    (tmp_path / "train.json").write_text(json.dumps({"model": "model", "training_file": "rows.jsonl", **options}))
    out = tmp_path / "out"
    assert main(["train", "--job", str(tmp_path / "train.json"), "--out", str(out)]) == 0
    resolved = Resolved.model_validate_json((out / "prepared" / "resolved.json").read_bytes())
    steps = [line["step"] for line in read_lines(out / "train" / "progress.jsonl")[0] if line["event"] == "step"]
    assert (resolved.n_examples, resolved.n_validation, steps) == (18, 6, list(range(1, resolved.total_steps + 1)))
    assert Result.model_validate_json((out / "result.json").read_bytes()).status == "succeeded"
    assert EvaluationResult.model_validate_json((out / "evaluation.json").read_bytes()).rows == 6
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    exported = ExportResult.model_validate_json((out / "exported" / "export.json").read_bytes())
    assert exported.cast_same == 1.0
    assert (out / "exported" / "model-f16.gguf").is_file()
