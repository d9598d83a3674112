"""A Llama as a GGUF file: read back by the gguf package and by transformers, and every base that is no Llama refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from finetune.__main__ import main
from finetune.data.tokenizer import load
from finetune.exit_codes import StepError
from finetune.export import gguf as writing
from finetune.export import llama, merge
from finetune.export.step import run
from finetune.model import fetch
from finetune.steps import ExportResult, ExportStep, FetchStep, ModelSource
from tests.finetune.export.conftest import Result
from tests.finetune.train.conftest import TEMPLATE

pytestmark = pytest.mark.train

LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "vocab_size": 264, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip


def test_the_file_holds_the_merged_model_tensor_by_tensor(
    result: Callable[..., Result], gguf_base: Path, tmp_path: Path
) -> None:
    run(ExportStep(merge=True, gguf=True, name="desk"), result(on=gguf_base).inputs, tmp_path)
    file = tmp_path / "exported" / "model-f16.gguf"
    told = ExportResult.model_validate_json((tmp_path / "exported" / "export.json").read_bytes())
    there = AutoModelForCausalLM.from_pretrained(tmp_path / "exported" / "merged").state_dict()
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", gguf_file=file.name, dtype=torch.float32)
    assert told.gguf_tensors == len(there) == 21
    for name, tensor in back.state_dict().items():
        stored = there[name] if there[name].ndim == 1 else there[name].half().float()
        assert torch.equal(tensor, stored), name
    probes = merge.probes_of(None, gguf_base)
    apart = merge.logits(AutoModelForCausalLM.from_pretrained(tmp_path / "exported" / "merged").eval(), probes)
    agreement = merge.compare(apart, merge.logits(back.eval(), probes))
    assert agreement.same > 0.98  # random logits lie close together
    assert agreement.difference < 0.02


def test_a_whole_model_becomes_a_file_and_has_no_adapter_to_merge(
    gguf_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--adapter", str(gguf_base), "--gguf"]) == 0
    assert len(gguf.GGUFReader(tmp_path / "exported" / "model-f16.gguf").tensors) == 21
    assert main(["export", "--adapter", str(gguf_base), "--merge"]) == 87
    assert "no adapter to merge" in json.loads((tmp_path / "error.json").read_text())["message"]


def test_the_file_tells_shape_tokens_and_template(gguf_base: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(gguf_base), load(gguf_base)
    target = tmp_path / "m.gguf"
    writing.write(model.state_dict(), *llama.require(gguf_base), gguf_base, tokenizer, "desk", target)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(target).fields.items()}
    told = {
        "general.architecture": "llama", "general.name": "desk", "general.file_type": 1, "llama.block_count": 2,
        "llama.embedding_length": 32, "llama.feed_forward_length": 64, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 8, "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0, "llama.vocab_size": 264, "llama.context_length": 2048,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 258, "tokenizer.ggml.padding_token_id": 256, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    assert {name: fields[name] for name in told} == told
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert [tokens[id_] for id_ in (256, 258, 260, 261)] == ["<|endoftext|>", "<|im_end|>", "er", "[PAD261]"]
    assert [kinds[id_] for id_ in (0, 258, 261)] == [1, 3, 5]
    text = "<|im_start|>user\nolá, 42 × us é<|im_end|>\n"
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file=target.name)
    assert read(text, add_special_tokens=False)["input_ids"] == tokenizer.ids(text)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ],
    ids=["llama3", "linear"],
)  # fmt: skip
def test_a_scaled_rotary_embedding_is_written_as_readers_expect_it(
    rope: dict[str, Any], gguf_base: Path, tmp_path: Path
) -> None:
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**shape, vocab_size=264, rope_parameters=rope, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    found = llama.shape(json.loads(config.to_json_string(use_diff=False)))
    splitting = llama.Splitting("gpt2", "gpt-2")
    writing.write(model.state_dict(), found, splitting, gguf_base, load(gguf_base), "m", tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert "output.weight" not in tensors
    if rope["rope_type"] == "linear":
        scaled = {name: reader.fields[f"llama.rope.scaling.{name}"].contents() for name in ("type", "factor")}
        assert scaled == {"type": "linear", "factor": 4.0}
        return
    ours = 1 / (500000.0 ** (np.arange(0, 32, 2) / 32)) / tensors["rope_freqs.weight"]
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    assert ours == pytest.approx(theirs.numpy(), rel=1e-5)


def test_weights_that_f16_cannot_hold_are_refused(gguf_base: Path, tmp_path: Path) -> None:
    weights = AutoModelForCausalLM.from_pretrained(gguf_base).state_dict()
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    with pytest.raises(StepError, match=r"up_proj\.weight are larger than F16"):
        writing.write(weights, *llama.require(gguf_base), gguf_base, load(gguf_base), "m", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_file_that_holds_something_else_is_found(gguf_base: Path, tmp_path: Path) -> None:
    weights = AutoModelForCausalLM.from_pretrained(gguf_base).state_dict()
    found, splitting = llama.require(gguf_base)
    target = tmp_path / "m.gguf"
    writing.write(weights, found, splitting, gguf_base, load(gguf_base), "m", target)
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    written = {
        label: writing.sealed(writing._array(label, weights, key, found))
        for label, key in writing._tensors(weights, found)
    }
    with pytest.raises(StepError, match="read back otherwise") as refused:
        writing._compare(target, written)
    assert refused.value.code.name == "merge_mismatch"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen3"}, "its model type is 'qwen3'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "of the type 'yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rms_norm_eps": None}, "lacks what a Llama has"),
    ],
)
def test_a_base_that_is_no_llama_is_refused_with_the_way_out(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StepError, match="choose a Llama-shaped base") as refused:
        llama.shape(LLAMA | change)
    assert words in refused.value.message
    assert (refused.value.code.name, refused.value.param) == ("unsupported_operation", "output.gguf")


def test_a_sliding_window_bounds_the_context() -> None:
    assert llama.shape(LLAMA | {"model_type": "mistral", "sliding_window": 512}).context == 512
    assert llama.shape(LLAMA | {"model_type": "mistral", "sliding_window": None}).context == 2048


def test_an_unsuitable_base_is_refused_before_anything_is_trained(base: Path, gguf_base: Path, tmp_path: Path) -> None:
    def step(folder: Path) -> FetchStep:
        model = ModelSource(id="tiny", kind="path", location=str(folder))
        return FetchStep(model=model, cache_dir=str(tmp_path / "cache"), gguf=True)

    with pytest.raises(StepError, match="GGUF has no name for"):
        fetch.run(step(base), {}, tmp_path)
    assert not (tmp_path / "base.json").exists()
    fetch.run(step(gguf_base), {}, tmp_path)
    assert (tmp_path / "base.json").is_file()


def test_pieces_have_scores_by_the_rank_of_their_merge(gguf_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gguf_base, tmp_path / "pieces"))
    file = json.loads((folder / "tokenizer.json").read_text())
    vocab = {"<unk>": 0, "<0x41>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5, "▁ab": 6}
    file["model"] |= {"vocab": vocab, "merges": [["▁", "a"], ["▁a", "b"]], "byte_fallback": True, "unk_token": "<unk>"}
    file["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    splitting = llama.splitting(file)
    writing._vocabulary(writer, splitting, folder, load(folder), 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "t.gguf").fields.items()}
    assert splitting.model == "llama"
    assert fields["tokenizer.ggml.scores"] == [0, 0, 0, 0, 0, 0, -1]
    assert fields["tokenizer.ggml.token_type"] == [2, 6, 1, 1, 1, 1, 1]
    assert fields["tokenizer.ggml.add_space_prefix"] is True
