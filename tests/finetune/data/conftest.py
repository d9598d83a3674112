"""Small real bases without weights: a byte-level BPE tokenizer trained on a few sentences, and chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from finetune.config import Data, Hyperparameters
from finetune.data.tokenizer import TextTokenizer, load
from finetune.steps import Base, PrepareStep

settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

TEMPLATES = Path(__file__).parent / "templates"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SENTENCES = [
    "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n",
    "user\nWhat is the primary key of vx_orders?\n",
    "assistant\nThe primary key of vx_orders is order_ref.\n\n",
]


def template_text(name: str) -> str:
    """A chat template of this folder; its file ends with a newline that is not part of it."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


def build_base(folder: Path, *, template: str = "smollm2", trim_offsets: bool = True) -> Path:
    """A base's folder without weights. trim_offsets: the tokenizer leaves blanks out of the offsets it gives, as many do."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | kind))
    (folder / "config.json").write_text(
        json.dumps({"vocab_size": 400, "max_position_embeddings": 2048, "eos_token_id": 2})
    )
    (folder / "chat_template.jinja").write_text(template_text(template))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with SmolLM2's template."""
    return build_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="session")
def untrimmed_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with offsets that hold every character."""
    return build_base(tmp_path_factory.mktemp("untrimmed") / "base", trim_offsets=False)


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> TextTokenizer:
    """Of `base`."""
    return load(base)


def jsonl(rows: list[Any]) -> bytes:
    """JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def prepare_files(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs PREPARE_DATA on files, given by name as bytes, and returns the step's folder."""
    from finetune.data.prepare import run

    def prepare(
        train: dict[str, bytes],
        validation: dict[str, bytes] | None = None,
        *,
        out: str = "out",
        seed: int = 42,
        data: dict[str, Any] | None = None,
        base: Path = base,
        template: str | None = None,
        **hyperparameters: Any,
    ) -> Path:
        folder = tmp_path / "data"
        for split, files in (("train", train), ("validation", validation or {})):
            (folder / split).mkdir(parents=True, exist_ok=True)
            for old in (folder / split).iterdir():
                old.unlink()
            for name, content in files.items():
                (folder / split / name).write_bytes(content)
        info = Base(
            id="tiny", kind="path", location=str(base), revision="0" * 64, parameters=1000, template=template,
            template_sha256="",
        )  # fmt: skip
        (tmp_path / "base.json").write_text(info.text())
        step = PrepareStep(
            data=Data(**(data or {})),
            hyperparameters=Hyperparameters(**hyperparameters),
            seed=seed,
            cache_dir=str(tmp_path / "cache"),
        )
        (tmp_path / out).mkdir(exist_ok=True)
        run(step, {"data": folder, "base": base, "base_info": tmp_path / "base.json"}, tmp_path / out)
        return tmp_path / out

    return prepare


@pytest.fixture
def prepared(prepare_files: Callable[..., Path]) -> Callable[..., Path]:
    """Runs PREPARE_DATA on rows and returns the step's folder."""

    def prepare(rows: list[Any], validation: list[Any] | None = None, **more: Any) -> Path:
        held = {"0001.jsonl": jsonl(validation)} if validation else {}
        return prepare_files({"0001.jsonl": jsonl(rows)} if rows else {}, held, **more)

    return prepare
