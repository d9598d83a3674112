"""What the engine is measured with: a base, a hundred adapters of random weights on it, questions; and plain transformers + peft."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from finetune.data.row import Message
from finetune.data.tokenizer import load
from finetune.inference.prompt import prompt_ids
from finetune.model import cache, catalog, fetch, loading
from finetune.model.peft_folder import CONFIG, WEIGHTS, Imported, lora_fields
from finetune.steps import S3, Base, Manifest, ModelSource

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PHRASE = "which order of the blue depot was late, what did the customer write back, and who answers for it on monday"


@dataclass(frozen=True)
class Inputs:
    """What is measured with.

    Attributes:
        folder: The base's.
        base: What it is.
        adapters: Folders with manifest.json and adapter/.
        size: Bytes of one adapter's weights.
        precision: Of the base.
    """

    folder: Path
    base: Base
    adapters: list[Path]
    size: int
    precision: str


def make(work: Path, kept: Path, model: str | None, count: int) -> Inputs:
    """A base and `count` adapters on it.

    Args:
        work: Gets the adapters.
        kept: Where the base is, or is brought to.
        model: A name of the models file; None: a tiny random one.
    """
    source = (
        ModelSource(id="tiny", kind="path", location=str(_tiny(work / "tiny")))
        if model is None
        else catalog.resolve(model, catalog.load(None))
    )
    folder, base, _ = fetch.obtain(source, S3(), kept)
    where = loading.device()
    loaded = loading.load_base(folder, where, "float32")
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(loaded, lora).save_pretrained(work / "pattern")
    pattern = load_file(work / "pattern" / WEIGHTS)
    config = json.loads((work / "pattern" / CONFIG).read_text(encoding="utf-8"))
    adapters = [_adapter(work / f"adapter-{number:03d}", number, pattern, config, base) for number in range(count)]
    size = (adapters[0] / "adapter" / WEIGHTS).stat().st_size
    return Inputs(folder, base, adapters, size, loading.precision(where))


def questions(count: int) -> list[str]:
    """Of different lengths."""
    words = PHRASE.split()
    return [" ".join(words[at % 5 : at % 5 + 6 + 2 * (at % 8)]) + f" ({at})?" for at in range(count)]


class Plain:
    """transformers' `generate` over peft, as one writes it: one adapter set, switched, or mixed by `adapter_names`.

    Args:
        inputs: The base.
        adapters: All in memory.
    """

    def __init__(self, inputs: Inputs, adapters: list[Path]) -> None:
        where = loading.device()
        model = loading.load_base(inputs.folder, where, loading.precision(where))
        self._model: Any = PeftModel.from_pretrained(model, str(adapters[0] / "adapter"), adapter_name=adapters[0].name)
        for adapter in adapters[1:]:
            self._model.load_adapter(str(adapter / "adapter"), adapter_name=adapter.name)
        self._model.eval()
        self._tokenizer, self._where = load(inputs.folder, inputs.base.template), where

    def ask(
        self, adapters: list[Path | None], asked: list[str], tokens: int, *, mixed: bool
    ) -> tuple[int, float, list[float]]:
        """Answer questions: tokens made, seconds, and when each had its first token (of `generate`: with its last)."""
        names = [adapter.name for adapter in adapters if adapter is not None]
        prompts = [prompt_ids(self._tokenizer, [Message("user", question)]) for question in asked]
        begin = time.perf_counter()
        if mixed:
            made = self._generate(prompts, tokens, adapter_names=names)
            return made, time.perf_counter() - begin, [time.perf_counter() - begin] * len(asked)
        if len(set(names)) == 1:
            self._model.set_adapter(names[0])
            made = self._generate(prompts, tokens)
            return made, time.perf_counter() - begin, [time.perf_counter() - begin] * len(asked)
        made, ends = 0, []
        for name, prompt in zip(names, prompts, strict=True):
            self._model.set_adapter(name)
            made += self._generate([prompt], tokens)
            ends.append(time.perf_counter() - begin)
        return made, ends[-1], ends

    def _generate(self, prompts: list[list[int]], tokens: int, **more: Any) -> int:
        wide, pad = max(map(len, prompts)), self._tokenizer.pad_id
        ids = torch.tensor([[pad] * (wide - len(one)) + one for one in prompts], device=self._where)
        mask = torch.tensor([[0] * (wide - len(one)) + [1] * len(one) for one in prompts], device=self._where)
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=pad,
                eos_token_id=list(self._tokenizer.eos_ids) or None, **more,
            )  # fmt: skip
        answers = made[:, wide:].tolist()
        return sum(_length(answer, set(self._tokenizer.eos_ids)) for answer in answers)


def _length(answer: list[int], ends: set[int]) -> int:
    return next((at + 1 for at, token in enumerate(answer) if token in ends), len(answer))


def _adapter(prefix: Path, seed: int, pattern: dict[str, torch.Tensor], config: dict[str, Any], base: Base) -> Path:
    """An adapter of small random weights: answers stay of the base's kind, and of its length."""
    draw = torch.Generator().manual_seed(seed)
    folder = prefix / "adapter"
    folder.mkdir(parents=True)
    weights = {name: torch.randn(tensor.shape, generator=draw) * 1e-3 for name, tensor in pattern.items()}
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    files = [
        Manifest.File(path=f"adapter/{path.name}", sha256=cache.file_sha256(path), size=path.stat().st_size)
        for path in sorted(folder.iterdir())
    ]
    source = ModelSource(id=base.id, kind=base.kind, location=base.location, revision=base.revision)
    vouched = Imported(created_at=1, base=source, source="random", lora=lora_fields(config), files=files)
    (prefix / "manifest.json").write_text(vouched.text(), encoding="utf-8")
    return prefix


def _tiny(folder: Path) -> Path:
    """A Llama of 2 layers of random weights, every byte a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=264, max_position_embeddings=4096, eos_token_id=258,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: id_ for id_, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder
