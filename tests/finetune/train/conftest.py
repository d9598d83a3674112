"""A tiny random Llama with a byte-level tokenizer, real prepared data for it, and trainings in this process or another."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from finetune import environment
from finetune.config import Backend, Data, Hyperparameters, Lora, MethodType, Technique
from finetune.progress import read_lines
from finetune.steps import Base, PrepareStep, Resolved, Result, TrainStep

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QUIET = {"LLAMAFLOW_FP32": "1", "LLAMAFLOW_THREADS": "1", "LLAMAFLOW_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
DEADLINE = 120.0


def chat(question: str, answer: str) -> dict[str, Any]:
    """A row of one question."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pair(question: str, good: str, bad: str) -> dict[str, Any]:
    """A row of a preference."""
    ask, sides = {"messages": [{"role": "user", "content": question}]}, (good, bad)
    preferred, other = ([{"role": "assistant", "content": answer}] for answer in sides)
    return {"input": ask, "preferred_output": preferred, "non_preferred_output": other}


PAIRS = [pair(f"q{n}" + "?" * (n % 5), f"yes{n}", "no" * (1 + n % 3)) for n in range(12)]
ROWS = [chat(f"q{n}" + "?" * (n % 7), f"a{n}" * (1 + n % 4)) for n in range(14)]
HELD_OUT = [chat(f"h{n}", f"a{n}") for n in range(3)]


def build_base(folder: Path, **shape: int) -> Path:
    """Every byte is a token; two layers of random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} | shape
    config = LlamaConfig(**shape, num_key_value_heads=2, vocab_size=264, eos_token_id=258, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: id_ for id_, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | named))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base everything here is trained on."""
    return build_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 on one thread of the CPU: what is promised to the bit is promised there."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


@dataclass
class Bench:
    """A prepared dataset and the trainings made of it, each in a folder of its own below `root`."""

    root: Path
    base: Path
    inputs: dict[str, Path]
    lora: Lora
    seed: int = 7
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def resolved(self) -> Resolved:
        """Of the prepared dataset."""
        return Resolved.model_validate_json((self.inputs["prepared"] / "resolved.json").read_bytes())

    def state(self, name: str) -> Path:
        """The train/ folder of a training."""
        return self.root / name / "train"

    def step(self, name: str, **fields: Any) -> TrainStep:
        """train.json of a training."""
        return TrainStep(lora=self.lora, seed=self.seed, state_dir=str(self.state(name)), **self.fields, **fields)

    def train(self, name: str, **fields: Any) -> Result:
        """Train here, to the end; the step's outputs are in `root/name`."""
        from finetune.train.step import run

        (self.root / name).mkdir(exist_ok=True)
        run(self.step(name, **fields), self.inputs, self.root / name)
        return Result.model_validate_json((self.root / name / "result.json").read_bytes())

    def start(self, name: str, out: str = "out") -> subprocess.Popen[str]:
        """Start a training in a process of its own."""
        folder = self.root / name / out
        folder.mkdir(parents=True)
        (folder / "train.json").write_text(self.step(name).text())
        inputs = [part for key, path in self.inputs.items() for part in ("--in", f"{key}={path}")]
        line = [sys.executable, "-W", "ignore", "-m", "finetune", "train", "--job", str(folder / "train.json")]
        return subprocess.Popen(
            [*line, *inputs, "--out", str(folder)],
            env=environment.for_child(QUIET), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def lines(self, name: str, event: str | None = None) -> list[dict[str, Any]]:
        """Lines of a training's progress.jsonl."""
        found, _ = read_lines(self.state(name) / "progress.jsonl")
        return [line for line in found if event in (None, line["event"])]

    def wait_for_step(self, name: str, step: int) -> None:
        """Wait until a training has told a step."""
        wait_until(lambda: any(line["step"] >= step for line in self.lines(name, "step")), f"step {step} of {name}")

    def weights(self, name: str) -> bytes:
        """The weights of a training that is done: adapter_model.safetensors, or model.safetensors."""
        file = (
            "model/model.safetensors" if self.fields.get("technique") == "full" else "adapter/adapter_model.safetensors"
        )
        return (self.root / name / "train" / file).read_bytes()


def wait_until(there: Callable[[], bool], what: str) -> None:
    """Wait for a condition, not longer than `DEADLINE`."""
    end = time.monotonic() + DEADLINE
    while not there():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.005)


@pytest.fixture
def bench(base: Path, tmp_path: Path) -> Callable[..., Bench]:
    """Prepares rows for `base` with hyperparameters, and makes a bench of it."""
    from finetune.data.prepare import run

    def make(
        rows: list[dict[str, Any]] = ROWS,
        held_out: list[dict[str, Any]] = HELD_OUT,
        lora: Lora | None = None,
        technique: Technique = "lora",
        method: MethodType = "supervised",
        backend: Backend = "auto",
        **hyperparameters: Any,
    ) -> Bench:
        for split, content in (("train", rows), ("validation", held_out)):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            if content:
                text = "".join(json.dumps(row) + "\n" for row in content)
                (tmp_path / "data" / split / "0001.jsonl").write_text(text)
        info = Base(id="tiny", kind="path", location=str(base), revision="0" * 64, parameters=1000, template_sha256="")
        (tmp_path / "base.json").write_text(info.text())
        asked = Hyperparameters(**{"n_epochs": 3, "batch_size": 4, "learning_rate": 0.01, **hyperparameters})
        data = Data(format="preference" if method == "dpo" else "auto")
        cache = str(tmp_path / "cache")
        step = PrepareStep(data=data, hyperparameters=asked, technique=technique, seed=7, cache_dir=cache)
        inputs = {"base": base, "base_info": tmp_path / "base.json"}
        run(step, {"data": tmp_path / "data", **inputs}, tmp_path)
        fields = {"technique": technique, "method": method, "backend": backend}
        return Bench(tmp_path, base, {"prepared": tmp_path / "prepared", **inputs}, lora or Lora(r=4), fields=fields)

    return make


@pytest.fixture
def reaped() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes put into it are ended with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
