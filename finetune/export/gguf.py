"""A Llama-shaped model as one GGUF file in F16, read back and compared before anybody gets it.

Matrices are F16, norms F32; query and key rows are reordered, because GGUF's readers rotate neighbours where transformers
rotates halves. Tensors are written one at a time. Needs torch for the weights; `finetune.export.llama` says which bases fit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from finetune.data.tokenizer import TextTokenizer
from finetune.exit_codes import StepError
from finetune.export.llama import Llama, Splitting

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

Weights = dict[str, torch.Tensor]
Array = npt.NDArray[Any]
Seal = tuple[str, tuple[int, ...], str]


def write(
    weights: Weights, llama: Llama, splitting: Splitting, base: Path, tokenizer: TextTokenizer, name: str, target: Path
) -> int:
    """Write a model and read it back.

    Args:
        weights: By transformers' names, float32.
        llama: The model's shape.
        splitting: Of its tokenizer.
        base: The folder with tokenizer.json and config.json.
        tokenizer: With the template in force.
        name: What the file calls the model.
        target: The file.
    Returns:
        How many tensors it has.
    Raises:
        StepError: `unsupported_operation`: a tensor that no Llama has, or weights beyond what F16 holds;
            `merge_mismatch`: what was read back is not what was written.
    """
    tensors = list(_tensors(weights, llama))
    writer = gguf.GGUFWriter(target, "llama")
    _describe(writer, llama, name)
    _vocabulary(writer, splitting, base, tokenizer, llama.vocabulary)
    for label, key in tensors:
        shape = tuple(weights[key].shape) if key else (llama.head_size // 2,)
        kind = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(label, shape, kind, math.prod(shape) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    written: dict[str, Seal] = {}
    try:
        for label, key in tensors:
            array = _array(label, weights, key, llama)
            written[label] = sealed(array)
            writer.write_tensor_data(array)
    except StepError:
        target.unlink()
        raise
    finally:
        writer.close()
    _compare(target, written)
    return len(tensors)


def _tensors(weights: Weights, llama: Llama) -> Iterator[tuple[str, str]]:
    """GGUF's name and transformers' of every tensor, in the order they are written; the rotary factors have no weights."""
    if llama.rope["rope_type"] == "llama3":
        yield "rope_freqs.weight", ""
    shared = "lm_head.weight" in weights and _same(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    for key in weights:
        if key.endswith("rotary_emb.inv_freq") or (shared and key == "lm_head.weight"):
            continue
        yield _label(key), key


def _label(key: str) -> str:
    if key in OUTER:
        return OUTER[key]
    _, _, rest = key.partition("model.layers.")
    layer, _, inner = rest.partition(".")
    module = inner.removesuffix(".weight")
    if not layer.isdecimal() or module not in NAMES or not inner.endswith(".weight"):
        told = f"The model has a tensor {key}, which no Llama has: it cannot become a GGUF file."
        raise StepError("unsupported_operation", told, param="output.gguf")
    return f"blk.{layer}.{NAMES[module]}.weight"


def _array(label: str, weights: Weights, key: str, llama: Llama) -> Array:
    """A tensor as the file holds it: norms and rotary factors in float32, the rest in float16."""
    if not key:
        return rope_factors(llama)
    tensor = weights[key].detach().to("cpu", torch.float32)
    if ".attn_q." in label:
        tensor = interleaved(tensor, llama.heads)
    elif ".attn_k." in label:
        tensor = interleaved(tensor, llama.kv_heads)
    array: Array = tensor.numpy()
    if array.ndim == 1:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        told = f"The weights of {key} are larger than F16 holds: the model cannot become a GGUF file."
        raise StepError("unsupported_operation", told, param="output.gguf")
    return half


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix, (heads · size, in), each head's two halves laid between each other."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def rope_factors(llama: Llama) -> npt.NDArray[np.float32]:
    """What each frequency is divided by in Llama 3.1's scaling, shape (head size / 2,) (Llama 3.1's reference code)."""
    rope, size = llama.rope, llama.head_size
    factor, low, high = (float(rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(rope["original_max_position_embeddings"])
    waves = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, size, 2) / size)
    smooth = (original / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = np.where(waves < original / high, 1.0, np.where(waves > original / low, factor, between))
    return found.astype(np.float32)


def _describe(writer: gguf.GGUFWriter, llama: Llama, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(llama.layers)
    writer.add_context_length(llama.context)
    writer.add_embedding_length(llama.hidden)
    writer.add_feed_forward_length(llama.intermediate)
    writer.add_head_count(llama.heads)
    writer.add_head_count_kv(llama.kv_heads)
    writer.add_key_length(llama.head_size)
    writer.add_value_length(llama.head_size)
    writer.add_rope_dimension_count(llama.head_size)
    writer.add_rope_freq_base(float(llama.rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(llama.rms_epsilon)
    writer.add_vocab_size(llama.vocabulary)
    if llama.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(llama.rope["factor"]))


def _vocabulary(writer: gguf.GGUFWriter, splitting: Splitting, base: Path, tokenizer: TextTokenizer, size: int) -> None:
    file = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = file["model"]["vocab"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in file["model"]["merges"]]
    tokens = {id_: token for token, id_ in vocab.items()}
    kinds = {id_: _kind(token, splitting, file["model"].get("unk_token")) for id_, token in tokens.items()}
    for id_, added in tokenizer.backend.get_added_tokens_decoder().items():
        tokens[id_] = added.content
        kinds[id_] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model(splitting.model)
    writer.add_tokenizer_pre(splitting.pre)
    writer.add_token_list([tokens.get(id_, f"[PAD{id_}]") for id_ in range(size)])
    writer.add_token_types([int(kinds.get(id_, gguf.TokenType.UNUSED)) for id_ in range(size)])
    if splitting.model == "llama":
        ranks = {merge.replace(" ", ""): -float(rank) for rank, merge in reversed(list(enumerate(merges)))}
        writer.add_token_scores([ranks.get(tokens.get(id_, ""), 0.0) for id_ in range(size)])
        writer.add_add_space_prefix("Prepend" in json.dumps(file.get("normalizer")))
    else:
        writer.add_token_merges(merges)
        writer.add_add_space_prefix(False)
    _special(writer, tokenizer)


def _special(writer: gguf.GGUFWriter, tokenizer: TextTokenizer) -> None:
    """The ids that open and close texts, and the template. A bos is put before a text where the tokenizer does so itself."""
    if tokenizer.lead:
        writer.add_bos_token_id(tokenizer.lead[0])
    writer.add_add_bos_token(bool(tokenizer.lead))
    if tokenizer.eos_ids:
        writer.add_eos_token_id(tokenizer.eos_ids[0])  # ends a turn, so that chats stop there
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_chat_template(tokenizer.template.source)


def _kind(token: str, splitting: Splitting, unknown: str | None) -> gguf.TokenType:
    if splitting.model == "llama" and token == unknown:
        return gguf.TokenType.UNKNOWN
    is_byte = splitting.model == "llama" and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or (one.shape == other.shape and bool(torch.equal(one, other)))


def sealed(array: Array) -> Seal:
    """What an array is known by: type, shape, and sha256 of its bytes."""
    return str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _compare(target: Path, written: dict[str, Seal]) -> None:
    """Read the file as any reader does, and compare every tensor to the bit."""
    read = {tensor.name: tensor.data for tensor in gguf.GGUFReader(target).tensors}
    differ = [label for label, seal in written.items() if label not in read or sealed(read[label]) != seal]
    if differ or len(read) != len(written):
        told = f"{target.name} does not hold the model: {differ[0] if differ else 'tensors'} was read back otherwise."
        raise StepError("merge_mismatch", told)
