"""The trainer's bench: what is exported was trained. And a base whose tokenizer GGUF has a name for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from finetune import steps
from finetune.config import Lora
from finetune.model import loading
from finetune.model.cache import describe, file_sha256, fingerprint
from finetune.steps import Manifest, Source
from finetune.train.adapter import write_weights
from tests.finetune.train.conftest import base, bench, exact

__all__ = ["base", "bench", "exact"]


@pytest.fixture(scope="session")
def gguf_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with GPT-2's splitting of text."""
    folder = tmp_path_factory.mktemp("gguf") / "base"
    shutil.copytree(base, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["use_regex"] = True
    tokenizer["model"]["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] |= {"us": 259, "er": 260}
    tokenizer["model"]["merges"] = [["u", "s"], ["e", "r"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@dataclass(frozen=True)
class Result:
    """A result as it lies on S3: a folder with adapter/ in it.

    Attributes:
        folder: Its place.
        base: What the adapter is for.
    """

    folder: Path
    base: Path

    @property
    def adapter(self) -> Path:
        """The PEFT folder."""
        return self.folder / "adapter"

    @property
    def inputs(self) -> dict[str, Path]:
        """What the step is given."""
        return {"base": self.base, "adapter": self.adapter}

    def write_manifest(self) -> None:
        """As UPLOAD_MODEL would."""
        files = [
            Manifest.File(path=f"adapter/{path.name}", sha256=file_sha256(path), size=path.stat().st_size)
            for path in self.adapter.iterdir()
        ]
        made = Manifest(
            job="j", suffix=None, created_at=0, base=about(self.base), dataset=Source(files=[]), config={}, resolved=RESOLVED,
            result=steps.Result(status="succeeded", train_key="k"), evaluation=None, code_version="", image=None, files=files,
        )  # fmt: skip
        (self.folder / "manifest.json").write_text(made.text())


def about(base: Path) -> steps.Base:
    """base.json of a folder."""
    return describe(steps.ModelSource(id="tiny", kind="path", location=str(base)), base, fingerprint(base))


@pytest.fixture
def result(base: Path, tmp_path: Path) -> Callable[..., Result]:
    """An adapter of random weights, which changes every answer."""

    def make(lora: Lora | None = None, on: Path = base) -> Result:
        folder = tmp_path / "result" / "adapter"
        folder.mkdir(parents=True)
        cpu = torch.device("cpu")
        model = loading.add_lora(loading.load_base(on, cpu, "float32"), lora or Lora(r=4), seed=1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        write_weights(model, about(on), folder)
        shutil.copyfile(on / "chat_template.jinja", folder / "chat_template.jinja")
        return Result(folder.parent, on)

    return make


RESOLVED = steps.Resolved(
    n_epochs=1, batch_size=1, learning_rate_multiplier=1.0, learning_rate=1e-3, warmup_ratio=0.1, weight_decay=0.0,
    lr_scheduler="cosine", max_length=128, gradient_accumulation_steps=1, max_grad_norm=1.0, save_steps=5,
    save_total_limit=3, eval_steps=5, total_steps=5, n_examples=5, n_validation=0, tokens=100, trained_tokens=50,
    longest=10, data_sha256="0" * 64,
)  # fmt: skip
