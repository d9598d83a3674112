"""A tiny random Llama with a byte-level tokenizer, adapters really trained on it, and a live engine process that serves them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from finetune.model.cache import file_sha256, fingerprint

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QUESTION = "Hello"
ANSWER = "Ça va? 日本語 😀 done"
TOKEN = "engine-token"
QUEUE = 3
CONTEXT = 60_000


@dataclass(frozen=True)
class Base:
    """A base on disk, and how a request names it."""

    folder: Path
    revision: str

    @property
    def source(self) -> dict[str, Any]:
        """`llamaflow.base`."""
        return {"id": "tiny", "kind": "path", "location": str(self.folder), "revision": self.revision}


def write_tokenizer(folder: Path) -> None:
    """Byte level, no merges: every byte is a token, so é takes two and an emoji four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: id_ for id_, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | named))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def write_base(folder: Path, seed: int) -> Base:
    """A Llama of 2 layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # two that wait for each other are many times slower where the cores are shared
    torch.manual_seed(seed)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **shape,
        num_key_value_heads=2,
        vocab_size=264,
        max_position_embeddings=CONTEXT,
        eos_token_id=258,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return Base(folder, fingerprint(folder))


@pytest.fixture(name="write_tokenizer")
def write_tokenizer_fixture() -> Callable[[Path], None]:
    """Writes the tokenizer's files into a folder."""
    return write_tokenizer


@pytest.fixture(name="write_manifest")
def write_manifest_fixture() -> Callable[[Path, Base], None]:
    """Writes the manifest of an adapter's folder."""
    return write_manifest


@pytest.fixture
def no_base(tmp_path: Path) -> Base:
    """A base that is not there, for tests that need only its name and revision."""
    return Base(tmp_path / "base", "a" * 64)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """The base everything stands on."""
    return write_base(tmp_path_factory.mktemp("base"), seed=0)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Equal in shape, of other weights."""
    return write_base(tmp_path_factory.mktemp("other"), seed=1)


def write_manifest(prefix: Path, base: Base) -> None:
    """manifest.json over what lies below `prefix`/adapter."""
    files = [
        {"path": f"adapter/{path.name}", "sha256": file_sha256(path), "size": path.stat().st_size}
        for path in sorted((prefix / "adapter").iterdir())
    ]
    resolved = dict.fromkeys(
        ("n_epochs", "batch_size", "max_length", "gradient_accumulation_steps", "save_steps", "save_total_limit", "eval_steps",
         "total_steps", "n_examples", "n_validation", "tokens", "trained_tokens", "longest"), 1
    ) | dict.fromkeys(("learning_rate_multiplier", "learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm"), 1.0)  # fmt: skip
    manifest = {
        "job": "ftjob-tiny",
        "suffix": None,
        "created_at": 1,
        "base": base.source | {"parameters": 1, "template_sha256": ""},
        "dataset": {"files": []},
        "config": {},
        "resolved": resolved | {"lr_scheduler": "cosine", "data_sha256": ""},
        "result": {"status": "succeeded", "train_key": ""},
        "evaluation": None,
        "code_version": "",
        "image": None,
        "files": files,
    }
    (prefix / "manifest.json").write_text(json.dumps(manifest))


def train_adapter(prefix: Path, base: Base, answer: str, steps: int = 100, question: str = QUESTION) -> None:
    """A LoRA that answers `question` with `answer`, learned by heart."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from finetune.data.row import Message
    from finetune.data.tokenizer import load

    torch.manual_seed(0)
    tokenizer = load(base.folder)
    prompt = tokenizer.prompt([Message("user", question)])
    ids = torch.tensor([[*prompt, *tokenizer.ids(answer + "<|im_end|>")]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), lora)
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss < 0.1, "the adapter has to know its answer by heart"
    model.save_pretrained(prefix / "adapter")
    write_manifest(prefix, base)


def random_adapter(prefix: Path, base: Base, seed: int, vectors: Any = None, **lora: Any) -> Path:
    """A LoRA of random weights, which changes every answer, with its manifest; vectors: of its training questions."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from finetune.inference import routing
    from finetune.model.peft_folder import VECTORS

    torch.manual_seed(seed)
    shape = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **shape)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), config).save_pretrained(prefix / "adapter")
    (prefix / "adapter" / "README.md").unlink()
    if vectors is not None:
        routing.write(prefix / "adapter" / VECTORS, vectors)
    write_manifest(prefix, base)
    return prefix


def adapter_source(prefix: Path, name: str) -> dict[str, str]:
    """`llamaflow.adapter` of a folder."""
    return {"id": name, "uri": f"{prefix.as_uri()}/adapter/", "manifest_uri": f"{prefix.as_uri()}/manifest.json"}


@pytest.fixture(scope="session")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that answers `QUESTION` with `ANSWER`, with its manifest."""
    prefix = tmp_path_factory.mktemp("adapter")
    train_adapter(prefix, base, ANSWER)
    return prefix


@pytest.fixture(scope="session")
def second_adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, that answers otherwise."""
    prefix = tmp_path_factory.mktemp("second")
    train_adapter(prefix, base, "Quite another answer.")
    return prefix


@dataclass(frozen=True)
class Live:
    """A running engine."""

    url: str
    client: OpenAI
    base: Base

    def ask(
        self, adapter: Path | None = None, *, base: Base | None = None, question: str = QUESTION, **options: Any
    ) -> Any:
        """A chat completion by the official client."""
        source = adapter_source(adapter, adapter.name) if adapter else None
        target = {"base": (base or self.base).source, "adapter": source}
        options = {"temperature": 0, "max_tokens": 64} | options
        messages: Any = [{"role": "user", "content": question}]
        return self.client.chat.completions.create(
            model="shown", messages=messages, extra_body={"llamaflow": target}, **options
        )

    def text(self, adapter: Path | None = None, **options: Any) -> str:
        """The first answer's text."""
        return str(self.ask(adapter, **options).choices[0].message.content)

    def health(self) -> dict[str, Any]:
        """What /healthz says."""
        return dict(httpx.get(f"{self.url}/healthz", trust_env=False).json())

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 20) -> None:
        """Wait for a moment that /healthz shows."""
        deadline = time.monotonic() + seconds
        while not wanted(seen := self.health()):
            assert time.monotonic() < deadline, seen


@pytest.fixture(scope="session")
def live(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The engine as a process of its own, as in production."""
    command = [
        sys.executable,
        "-m",
        "finetune",
        "serve",
        "--port",
        "0",
        "--allow-local",
        "--queue",
        str(QUEUE),
        "--max-adapters",
        "2",
    ]
    settings = {
        "LLAMAFLOW_ENGINE_TOKEN": TOKEN,
        "LLAMAFLOW_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        http = httpx.Client(trust_env=False)
        client = OpenAI(
            base_url=f"{url}/v1", api_key=TOKEN, max_retries=0, http_client=http, _strict_response_validation=True
        )
        yield Live(url, client, base)
        client.close()
        process.terminate()
        assert process.wait(30) == 0
