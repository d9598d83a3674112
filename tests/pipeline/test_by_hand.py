"""`nextflow run pipeline/main.nf --input s3://…` for real: a real S3 server, a real training of a tiny random model.

One run, looked at from all sides.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from finetune import s3
from finetune.steps import Manifest

pytestmark = pytest.mark.pipeline

HIDDEN, INNER, HEADS, LAYERS = 32, 64, 4, 2
PROCESSES = ["DOWNLOAD_DATA", "EVALUATE", "FETCH_MODEL", "FINE_TUNE", "PLAN", "PREPARE_DATA", "UPLOAD_MODEL"]


def tiny_llama(folder: Path) -> Path:
    """A random Llama of 50,000 weights over bytes."""
    folder.mkdir()
    vocabulary = {
        token: number for number, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<pad>", "</s>"])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = len(vocabulary)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": size, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
        "max_position_embeddings": 512, "pad_token_id": size - 2, "eos_token_id": size - 1, "bos_token_id": size - 1,
        "tie_word_embeddings": False, "dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    save_file(weights(size), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights(size: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random weights under transformers' names for Llama."""
    random = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (size, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (size, HIDDEN),
    }
    for layer in range(LAYERS):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{layer}.self_attn.{name}.weight"] = (HIDDEN, HIDDEN)
        for name, shape in (
            ("gate_proj", (INNER, HIDDEN)),
            ("up_proj", (INNER, HIDDEN)),
            ("down_proj", (HIDDEN, INNER)),
        ):
            shapes[f"model.layers.{layer}.mlp.{name}.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (HIDDEN,)
    return {name: (random.standard_normal(shape) * 0.05).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def finished(nextflow: Any, storage: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The launch folder of a run with two objects below a prefix and the keys under their short names."""
    folder = tmp_path_factory.mktemp("by-hand")
    for name in ("a", "b"):
        rows = [{"text": f"Text {name}{number}", "source": f"Source {number}"} for number in range(20)]
        storage.put(f"by-hand/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    storage.put("by-hand/notes.txt", b"not a dataset")
    model = tiny_llama(folder / "tiny")
    env = {
        "AWS_ACCESS_KEY": storage.env["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_KEY": storage.env["AWS_SECRET_ACCESS_KEY"],
        "AWS_ENDPOINT_URL": storage.env["AWS_ENDPOINT_URL_S3"],
        "LLAMAFLOW_CACHE_DIR": str(folder / "cache"),
    }
    options = ["--job_id", "hand", "--archive", "tar.gz", "--save_steps", "2", "-with-trace", "trace.tsv"]
    ended = nextflow(folder, "--input", storage.uri("by-hand/"), "--model_name", str(model), *options, env=env)
    assert ended.returncode == 0, ended.stdout
    return folder


def manifest(storage: Any) -> Manifest:
    return Manifest.model_validate_json(storage.get(storage.uri("model/hand/manifest.json")))


def test_plan_and_the_six_processes_run_once(finished: Path) -> None:
    with (finished / "trace.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert sorted(row["process"] for row in rows) == PROCESSES
    assert {(row["status"], row["attempt"]) for row in rows} == {("COMPLETED", "1")}


def test_model_s3_txt_says_where_the_adapter_lies(finished: Path, storage: Any) -> None:
    text = (finished / "model_s3.txt").read_text()
    assert text == "model uploaded to s3://llamaflow-data/model/hand/\n"
    assert storage.get(storage.uri("model/hand/model_s3.txt")).decode() == text


def test_the_manifest_tells_every_object_and_its_sha256(finished: Path, storage: Any) -> None:
    prefix = storage.uri("model/hand/")
    found = {
        row.uri.removeprefix(prefix): hashlib.sha256(storage.get(row.uri)).hexdigest()
        for row in s3.listing(storage.client, prefix)
    }
    found.pop("manifest.json")
    assert {file.path: file.sha256 for file in manifest(storage).files} == found
    assert {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "metrics.csv",
        "evaluation.json",
        "model.tar.gz",
    } <= found.keys()
    assert [name for name in found if name.endswith((".bin", ".pt", ".pkl"))] == []


def test_the_text_source_recipe_was_trained(finished: Path, storage: Any) -> None:
    told = manifest(storage)
    assert [file.uri for file in told.dataset.files] == [storage.uri("by-hand/a.jsonl"), storage.uri("by-hand/b.jsonl")]
    resolved = told.resolved
    assert (resolved.n_epochs, resolved.batch_size, resolved.learning_rate, resolved.n_examples) == (1, 8, 2e-5, 40)
    assert (told.result.status, told.result.steps) == ("succeeded", 5)
    assert told.base.kind == "path"


def test_checkpoints_are_adapters_alone(finished: Path, storage: Any) -> None:
    names = [file.path for file in manifest(storage).files if file.path.startswith("checkpoints/")]
    assert {name.split("/")[2] for name in names} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (finished / "work" / "state" / "hand" / "progress.jsonl").is_file()
